"""`GET /v1/models`: what can answer now, in OpenAI's shape."""

from typing import Any

from fastapi import APIRouter, Request

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelNotFoundError
from sidecar.server.state import state_of

router = APIRouter(tags=["openai"])


@router.get("/v1/models", summary="Models that can answer now, in OpenAI's shape")
async def models(request: Request) -> dict[str, Any]:
    catalogue = state_of(request).catalogue
    usable = [spec for spec in catalogue.specs.values() if not catalogue.obstacles(spec)]
    return {"object": "list", "data": [_model(spec) for spec in usable]}


@router.get("/v1/models/{model:path}", summary="One of them")
async def model(request: Request, model: str) -> dict[str, Any]:
    catalogue = state_of(request).catalogue
    spec = catalogue.get(model)
    if obstacles := catalogue.obstacles(spec):
        # What the list does not hold is not found; the reason is still told.
        told = "; ".join(f"{each.reason}{f' (cure: {each.cure})' if each.cure else ''}" for each in obstacles)
        raise ModelNotFoundError(f"model {model!r} cannot answer: {told}")
    return _model(spec)


def _model(spec: ModelSpec) -> dict[str, Any]:
    owner = spec.source.repo.split("/")[0] if spec.source and spec.source.repo else "ml-sidecar"
    return {
        "id": spec.id,
        "object": "model",
        "created": _created(spec),
        "owned_by": owner,
        "capabilities": list(spec.capabilities),
    }


def _created(spec: ModelSpec) -> int:
    """When its files came to this computer (Unix seconds); 0 for a model that has none of its own."""
    paths = [spec.folder / file.path for file in spec.files]
    return max((int(path.stat().st_mtime) for path in paths if path.is_file()), default=0)
