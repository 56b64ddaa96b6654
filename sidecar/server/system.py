"""System routes: health, metrics, events, shutdown."""

import time
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from sidecar import __version__
from sidecar.capabilities.backchannel import BACKCHANNEL
from sidecar.server.gpu import absence
from sidecar.server.state import state_of
from sidecar.server.transcription import SSE

router = APIRouter(tags=["system"])


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@router.get("/", summary="Name and version")
async def root(request: Request) -> dict[str, str]:
    return {"name": "ml-sidecar", "version": __version__, "status": state_of(request).status()}


@router.get("/health/live", summary="Whether the process answers; needs no token")
async def live() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/health", summary="What works, what does not, and why")
async def health(request: Request) -> dict[str, Any]:
    state = state_of(request)
    loaded = state.models_loaded()
    device, reason = state.device()
    gpu = await state.gpu.identity()
    return {
        "status": state.status(),
        "warnings": state.warnings() + absence(state.settings.device, device, gpu),
        "failing": state.failing(),
        "instance_id": state.instance_id,
        "version": __version__,
        "device": device,
        "device_reason": reason,
        "models_loaded": loaded,
        "model_loaded": any(loaded.values()),
        "processor_loaded": any(loaded.values()),
        "cuda_available": gpu.cuda,
        "gpu_available": gpu.available or device.startswith("mps"),
        "gpu_name": gpu.name,
        "queue_size": state.pool.queue_size(),
        "uptime_s": round(time.monotonic() - state.started_at, 3),
        "timestamp": _now(),
    }


@router.get("/api/health", summary="Health, in the older short form")
async def api_health(request: Request) -> dict[str, Any]:
    state = state_of(request)
    return {"status": state.status(), "models_loaded": state.models_loaded(), "timestamp": _now()}


@router.get("/api/gpu_stats", summary="Utilisation (%) and memory (GiB) of the NVIDIA GPUs")
async def gpu_stats(request: Request) -> dict[str, Any]:
    return await state_of(request).gpu.stats()


@router.get(
    "/metrics",
    summary="Prometheus text, or a JSON summary for Accept: application/json",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}, "application/json": {}}}},
)
async def metrics(request: Request) -> Response:
    state = state_of(request)
    if "application/json" in request.headers.get("accept", ""):
        import msgspec

        return Response(
            msgspec.json.encode(state.metrics.summary(state.pool.queue_size())), media_type="application/json"
        )
    return PlainTextResponse(state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get(
    "/events",
    summary="Server-sent events: phase, model states, progress, restarts",
    response_class=Response,
    responses={200: {"content": {SSE: {"schema": {"type": "string"}}}}},
)
async def events(request: Request) -> StreamingResponse:
    state = state_of(request)

    def present() -> list[tuple[str, dict[str, Any]]]:
        models = [("model", slot.describe()) for slot in state.pool.slots()]
        return [("phase", {**state.describe_phase(), "status": state.status()}), *models]

    return StreamingResponse(state.hub.stream(present), media_type=SSE, headers={"Cache-Control": "no-cache"})


@router.post("/reset", summary="Begin the figures of /metrics as JSON anew, peaks and latencies, too")
async def reset(request: Request) -> dict[str, str]:
    """Requests, failures and average time of the JSON summary of `/metrics` begin anew (this request is the first that
    they count), and so do `peak_utilization` of `/api/gpu_stats` and `latency` of `/api/v1/model/info`.

    All else stays: Prometheus' counters, queues and requests under way, models in memory, breakers, and settings such
    as the backchannel's threshold.
    """
    state = state_of(request)
    state.metrics.reset_summary()
    state.gpu.reset_peaks()
    BACKCHANNEL.latencies.reset()
    return {"status": "reset", "timestamp": _now()}


@router.post("/shutdown", status_code=202, summary="Stop the sidecar, all of it")
async def shutdown(request: Request) -> dict[str, str]:
    state_of(request).request_shutdown()
    return {"status": "stopping"}
