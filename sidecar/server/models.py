"""Model routes: what there is, what is in memory, and moving a model from one to the other."""

import asyncio
import math
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from sidecar.capabilities.base import KeepAlive
from sidecar.catalogue.downloader import check_downloadable
from sidecar.catalogue.spec import ModelSpec
from sidecar.inference.residency import parse_keep_alive
from sidecar.inference.slot import Slot
from sidecar.server.body import read_json
from sidecar.server.problem import from_validation
from sidecar.server.state import ServerState, state_of

router = APIRouter(tags=["models"])


class DownloadRequest(BaseModel):
    """What the user agrees to; it is remembered."""

    model_config = ConfigDict(extra="forbid")

    accept_licence: bool = False
    allow_pickles: tuple[str, ...] = ()


class Stay(BaseModel):
    """How long a model that is loaded by hand stays in memory when nobody asks it anything."""

    keep_alive: KeepAlive = None


_JSON = {"schema": DownloadRequest.model_json_schema(), "example": {"accept_licence": True}}
_BODY = {"requestBody": {"content": {"application/json": _JSON}}}
_STAY = {"requestBody": {"content": {"application/json": {"example": {"keep_alive": "10m"}}}}}


def describe(state: ServerState, spec: ModelSpec) -> dict[str, Any]:
    """One model: what the catalogue says, where its files are, what its runner does."""
    slot = next((each for each in state.pool.slots() if each.spec.id == spec.id), None)
    progress = state.downloads.progress(spec.id)
    failure = state.downloads.error(spec.id) or (slot.error if slot else None)
    obstacles = state.catalogue.obstacles(spec)
    return {
        "id": spec.id,
        "title": spec.title,
        "capabilities": list(spec.capabilities),
        "state": _model_state(state, spec, slot),
        "active_for": state.pool.active_for(spec.id),
        "size_bytes": state.cache.size_bytes(spec),
        "download_mb": spec.download_mb or None,
        "licence": spec.licence,
        "opt_in": spec.opt_in,
        "languages": list(spec.languages),
        "memory_mb": spec.memory_mb,
        "resident_bytes": slot.measured_bytes if slot and slot.resident else 0,
        "profile": spec.profile,
        "runtime": spec.runtime,
        "revision": state.cache.revision(spec),
        "progress": {"item": progress.item, "done": progress.done, "total": progress.total, "rate": progress.rate,
                     "eta_s": progress.eta_s} if progress else None,
        "pid": slot.describe()["pid"] if slot else None,
        "restarts": slot.restarts if slot else 0,
        "queue_size": slot.waiting if slot else 0,
        "error": failure.message if failure else None,
        "breaker": slot.breaker if slot else {"open": False, "failures": 0, "retry_after_s": None},
        "missing": [{"reason": each.reason, "cure": each.cure} for each in obstacles],
    }  # fmt: skip


def _model_state(state: ServerState, spec: ModelSpec, slot: Slot | None) -> str:
    progress = state.downloads.progress(spec.id)
    if progress is not None:
        return "verifying" if progress.state == "verifying" else "downloading"
    if slot is not None and slot.state != "available":
        return slot.state
    here = state.catalogue.is_supported(spec) and state.cache.state(spec) == "complete"
    return "available" if here else "absent"


@router.get("/models", summary="All models of the catalogue with their state")
async def models(request: Request) -> dict[str, Any]:
    state = state_of(request)
    return {
        "models": [describe(state, spec) for spec in state.catalogue.specs.values()],
        "faults": [
            {"id": fault.id, "file": fault.file and str(fault.file), "reason": fault.reason}
            for fault in state.catalogue.faults
        ],
    }


@router.get("/models/{model_id}", summary="One model")
async def model(request: Request, model_id: str) -> dict[str, Any]:
    state = state_of(request)
    return describe(state, state.catalogue.get(model_id))


@router.post(
    "/models/{model_id}/download",
    status_code=202,
    summary="Fetch the weights in the background",
    openapi_extra=_BODY,
    response_model=None,
)
async def download_model(request: Request, model_id: str) -> dict[str, Any] | Response:
    state = state_of(request)
    spec = state.catalogue.get(model_id)
    state.catalogue.check_supported(spec)
    body = await request.body() or b"{}"
    try:
        asked = read_json(DownloadRequest, body)
    except ValidationError as error:
        return from_validation(error, body)
    if asked.accept_licence or asked.allow_pickles:
        agree = state.cache.lockfile.agree
        await asyncio.to_thread(agree, spec.id, licence=asked.accept_licence, pickles=asked.allow_pickles)
    if state.cache.state(spec) != "complete":
        check_downloadable(spec, state.cache)
        state.downloads.start(spec)
    return describe(state, spec)


@router.post("/models/{model_id}/cancel", summary="Stop its download; what has arrived stays for the next one")
async def cancel_download(request: Request, model_id: str) -> dict[str, Any]:
    state = state_of(request)
    spec = state.catalogue.get(model_id)
    state.downloads.cancel(model_id)
    return describe(state, spec)


@router.post("/models/{model_id}/load", summary="Load it; answers when it is ready", openapi_extra=_STAY)
async def load_model(request: Request, model_id: str, wish: Stay | None = None) -> dict[str, Any]:
    state = state_of(request)
    spec = state.catalogue.usable(model_id)
    keep_alive = wish.keep_alive if wish else None
    keep_alive_s = None if keep_alive is None else parse_keep_alive(keep_alive, 0.0)
    slot = state.pool.slot(spec)
    slot.touch()
    await slot.ensure_ready()
    slot.touch(keep_alive_s)
    return describe(state, spec)


@router.post("/models/{model_id}/unload", summary="Take it out of memory once its running requests are answered")
async def unload_model(request: Request, model_id: str) -> dict[str, Any]:
    state = state_of(request)
    await state.pool.unload(model_id)
    return describe(state, state.catalogue.get(model_id))


@router.delete("/models/{model_id}", summary="Delete its weights from the cache")
async def delete_model(request: Request, model_id: str) -> dict[str, Any]:
    state = state_of(request)
    spec = state.catalogue.get(model_id)
    state.cache.check_removable(spec)
    state.downloads.cancel(model_id)
    await state.pool.unload(model_id)
    freed_bytes = await state.remove(spec)
    return {**describe(state, spec), "freed_bytes": freed_bytes}


@router.get("/api/ps", summary="Models in memory, in Ollama's shape")
async def resident(request: Request) -> dict[str, Any]:
    state = state_of(request)
    return {"models": [_ps(slot) for slot in state.pool.slots() if slot.resident]}


def _ps(slot: Slot) -> dict[str, Any]:
    left_s = slot.keep_alive_s - (time.monotonic() - slot.used_at)
    now = datetime.now(timezone.utc)
    # Ollama gives a date far away to what stays for ever.
    expires = now + timedelta(seconds=max(0.0, left_s)) if math.isfinite(left_s) else now.replace(year=now.year + 100)
    return {
        "name": slot.spec.id,
        "model": slot.spec.id,
        "size": slot.size_bytes(),
        "size_vram": slot.vram_bytes,
        "expires_at": expires.isoformat(),
        "state": slot.state,
        "details": {"family": slot.spec.runtime, "format": slot.spec.runtime},
    }
