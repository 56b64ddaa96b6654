"""Profile routes: the environments that models may need, and bringing one here or away while everything runs."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from sidecar.catalogue.profiles import Profile
from sidecar.errors import LicenceRequiredError, ProfileBusyError
from sidecar.server.body import read_json
from sidecar.server.problem import from_validation
from sidecar.server.state import ServerState, state_of

router = APIRouter(tags=["profiles"])

_SHOWN = {"installed": "installed", "outdated": "outdated", "broken": "outdated"}


class InstallRequest(BaseModel):
    """What the user agrees to."""

    accept_licence: bool = False


_JSON = {"schema": InstallRequest.model_json_schema(), "example": {"accept_licence": True}}
_BODY = {"requestBody": {"content": {"application/json": _JSON}}}


def describe(state: ServerState, profile: Profile) -> dict[str, Any]:
    """One profile: what its TOML says, and how far its environment is."""
    error = state.installs.error(profile.name)
    shown = _SHOWN.get(state.profiles.state(profile.name), "failed" if error else "absent")
    # The launcher tidies up after itself when the environment is already in use.
    progress = state.installs.progress(profile.name) if shown != "installed" else None
    known = state.catalogue.specs.values()
    needing = [spec.id for spec in known if spec.profile == profile.name and state.catalogue.is_supported(spec)]
    return {
        "name": profile.name,
        "description": profile.description,
        "state": "installing" if progress else shown,
        "size_mb": profile.size_mb,
        "cpu_size_mb": profile.cpu_size_mb,
        "licence": profile.licence,
        "notice": profile.notice,
        "needs_device": profile.needs_device,
        "models": needing,
        "progress": progress,
        "error": error.message if error else None,
    }


@router.get("/profiles", summary="All profiles with their state, size and licence")
async def profiles(request: Request) -> dict[str, Any]:
    state = state_of(request)
    return {"profiles": [describe(state, profile) for profile in state.profiles.known()]}


@router.post(
    "/profiles/{name}/install",
    status_code=202,
    summary="Make its environment in the background; models that need it then become available live",
    openapi_extra=_BODY,
    response_model=None,
)
async def install_profile(request: Request, name: str) -> dict[str, Any] | Response:
    state = state_of(request)
    profile = state.profiles.get(name)
    body = await request.body() or b"{}"
    try:
        agreed = read_json(InstallRequest, body).accept_licence
    except ValidationError as error:
        return from_validation(error, body)
    if profile.notice and not agreed:
        raise LicenceRequiredError(f'{profile.notice} Send {{"accept_licence": true}} to agree.')
    if name in state.profiles.leaving:
        raise ProfileBusyError(f"the profile {name!r} is being removed; install it when that is done")
    if state.profiles.state(name) != "installed":
        state.installs.start(name)
    return describe(state, profile)


@router.post("/profiles/{name}/cancel", summary="Stop its installation; what has been fetched stays for the next one")
async def cancel_install(request: Request, name: str) -> dict[str, Any]:
    state = state_of(request)
    profile = state.profiles.get(name)
    if state.installs.cancel(name):
        await state.installs.settled(name)
    return describe(state, profile)


@router.delete("/profiles/{name}", summary="Unload its models, then delete its environments")
async def delete_profile(request: Request, name: str) -> dict[str, Any]:
    state = state_of(request)
    profile = state.profiles.get(name)
    freed_bytes = await state.remove_profile(name)
    return {**describe(state, profile), "freed_bytes": freed_bytes}
