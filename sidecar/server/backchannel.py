"""The backchannel routes besides prediction: about the model, and its threshold."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from sidecar.capabilities.backchannel import BACKCHANNEL
from sidecar.server.body import read_json
from sidecar.server.problem import from_validation
from sidecar.server.state import state_of

router = APIRouter(prefix="/api/v1/model", tags=["backchannel"])


class Threshold(BaseModel):
    """Probability above which, strictly, an utterance counts as a backchannel."""

    threshold: Annotated[float, Field(ge=0, le=1, strict=True)]


_JSON = {"schema": Threshold.model_json_schema(), "example": {"threshold": 0.6}}
_BODY = {"requestBody": {"required": True, "content": {"application/json": _JSON}}}


@router.get("/info", summary="The backchannel model that answers, its threshold and its latencies")
async def info(request: Request) -> dict[str, Any]:
    state = state_of(request)
    spec = state.pool.resolve(BACKCHANNEL.name)
    slot = state.pool.slot(spec)
    return {
        "model_name": spec.id,
        "is_ready": slot.state == "ready" or (slot.state in ("available", "unloading") and slot.was_ready),
        "model_type": spec.runtime,
        "threshold": BACKCHANNEL.threshold,
        "max_batch_size": BACKCHANNEL.max_batch_size,
        "latency": BACKCHANNEL.latencies.summary(),
        "models": [each.id for each in state.catalogue.for_capability(BACKCHANNEL.name)],
    }


@router.put(
    "/threshold",
    summary="Change the threshold until the sidecar is stopped",
    openapi_extra=_BODY,
    response_model=None,
)
async def set_threshold(request: Request) -> dict[str, Any] | Response:
    # Read here, as the other routes do: what a body is, its content says, whatever curl calls it.
    body = await request.body()
    try:
        threshold = read_json(Threshold, body).threshold
    except ValidationError as error:
        return from_validation(error, body)
    BACKCHANNEL.threshold = threshold
    state_of(request).keep_setting("model_threshold", threshold)
    return await info(request)
