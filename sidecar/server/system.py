"""System routes: health, metrics, events, shutdown."""

import time
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from sidecar import __version__
from sidecar.server.state import ServerState

router = APIRouter(tags=["system"])


def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.sidecar
    return state


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@router.get("/", summary="Name and version")
async def root(request: Request) -> dict[str, str]:
    return {"name": "ml-sidecar", "version": __version__, "status": _state(request).status()}


@router.get("/health/live", summary="Whether the process answers; needs no token")
async def live() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/health", summary="What works, what does not, and why")
async def health(request: Request) -> dict[str, Any]:
    state = _state(request)
    loaded = state.models_loaded()
    device, reason = state.device()
    return {
        "status": state.status(),
        "warnings": state.warnings(),
        "instance_id": state.instance_id,
        "version": __version__,
        "device": device,
        "device_reason": reason,
        "models_loaded": loaded,
        "model_loaded": any(loaded.values()),
        "processor_loaded": any(loaded.values()),
        "cuda_available": False,
        "gpu_available": False,
        "gpu_name": None,
        "queue_size": state.pool.queue_size(),
        "uptime_s": round(time.monotonic() - state.started_at, 3),
        "timestamp": _now(),
    }


@router.get("/api/health", summary="Health, in the older short form")
async def api_health(request: Request) -> dict[str, Any]:
    state = _state(request)
    return {"status": state.status(), "models_loaded": state.models_loaded(), "timestamp": _now()}


@router.get("/metrics", summary="Prometheus text, or a JSON summary for Accept: application/json")
async def metrics(request: Request) -> Response:
    state = _state(request)
    if "application/json" in request.headers.get("accept", ""):
        import msgspec

        return Response(
            msgspec.json.encode(state.metrics.summary(state.pool.queue_size())), media_type="application/json"
        )
    return PlainTextResponse(state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/events", summary="Server-sent events: phase, model states, progress")
async def events(request: Request) -> StreamingResponse:
    state = _state(request)
    first: list[tuple[str, dict[str, Any]]] = [("phase", {"phase": state.phase, "status": state.status()})]
    first += [("model", slot.describe()) for slot in state.pool.slots()]
    return StreamingResponse(
        state.hub.stream(first), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


@router.post("/shutdown", status_code=202, summary="Stop the sidecar, all of it")
async def shutdown(request: Request) -> dict[str, str]:
    _state(request).request_shutdown()
    return {"status": "stopping"}
