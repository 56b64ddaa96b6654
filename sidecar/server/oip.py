"""The Open Inference Protocol (v2, KServe and Triton): `/v2`, for clients that know it, such as tritonclient.

A model is named by its catalogue id, or by a capability, which then means whatever model answers it now. A row of the
input tensors is one request, and is batched with everybody else's.
"""

import re
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from sidecar import __version__
from sidecar.capabilities import BY_NAME
from sidecar.capabilities.base import Capability, InferenceRequest, Tensor, TensorForm
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import BadRequestError, InputError, ModelNotFoundError
from sidecar.inference.batcher import Priority
from sidecar.inference.fallback import by_best
from sidecar.server.fields import first_fault
from sidecar.server.routes import answer, infer_each
from sidecar.server.state import ServerState, state_of
from sidecar.server.tensors import InferBody, flat, read_body, rows, to_binary

router = APIRouter(tags=["open inference protocol"])

VERSION = "1"
_MODEL = "/v2/models/{model}"
_VERSIONED = "/v2/models/{model}/versions/{version}"
# The protocol's own names where it has one.
_PLATFORMS = {"onnx": "onnx_onnxv1"}
_HEADER_LENGTH = "Inference-Header-Content-Length"
Found = tuple[ModelSpec, Capability[Any, Any, Any, Any]]
_LENGTH = re.compile(r"[0-9]{1,18}")  # Python refuses to read a number of thousands of digits
_EXAMPLE = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["I am so happy today!", "Leave me alone."]}]
}


@router.get("/v2", summary="Name, version and extensions of the server")
async def server() -> dict[str, Any]:
    return {"name": "ml-sidecar", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/v2/health/live", summary="Whether the server answers")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/v2/health/ready", summary="200 when every capability can be answered, else 503")
async def ready(request: Request) -> Response:
    able = state_of(request).can_answer_all()
    return JSONResponse({"live": True, "ready": able}, 200 if able else 503)


@router.get(_MODEL, summary="Tensors of a model")
@router.get(_VERSIONED, include_in_schema=False)
async def metadata(request: Request, model: str, version: str = VERSION, capability: str | None = None) -> Any:
    spec, spoken = _find(state_of(request), model, version, capability)
    form = _form(spoken)
    return {
        "name": spec.id,
        "versions": [VERSION],
        "platform": _PLATFORMS.get(spec.runtime, f"sidecar_{spec.runtime}"),
        "inputs": [_described(tensor) for tensor in form.inputs],
        "outputs": [_described(tensor) for tensor in form.outputs],
    }


@router.get(f"{_MODEL}/ready", summary="200 when the model would answer a request, else 503")
@router.get(f"{_VERSIONED}/ready", include_in_schema=False)
async def model_ready(request: Request, model: str, version: str = VERSION, capability: str | None = None) -> Response:
    state = state_of(request)
    spec, _ = _find(state, model, version, capability)
    able = state.can_answer(spec)
    return JSONResponse({"name": spec.id, "ready": able}, 200 if able else 503)


@router.post(
    f"{_MODEL}/infer",
    summary="Answer the rows of the input tensors, as JSON or binary",
    openapi_extra={"requestBody": {"content": {"application/json": {"example": _EXAMPLE}}}},
)
@router.post(f"{_VERSIONED}/infer", include_in_schema=False)
async def infer(request: Request, model: str, version: str = VERSION) -> Response:
    state = state_of(request)

    async def work(body: bytes) -> Response:
        return await _infer(state, model, version, body, request)

    response = await answer(request.receive, state.settings.request_timeout_s, work)
    return response or Response()  # nobody is there to read it


async def _infer(state: ServerState, model: str, version: str, body: bytes, request: Request) -> Response:
    length = request.headers.get(_HEADER_LENGTH)
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadRequestError(f"{_HEADER_LENGTH} is {length[:40]!r}, no number of bytes")
    asked, elements = read_body(body, None if length is None else int(length))

    async def ask(found: Found) -> Response:
        spec, capability = found
        form = _form(capability)
        _check_outputs(asked, form)
        # All rows by the same model, also when a better one takes over meanwhile.
        pinned = {"model": spec.id, "keep_alive": asked.parameters.get("keep_alive")}
        requests = [_request(form, number, row | pinned) for number, row in enumerate(_rows(asked, elements, form))]
        priority = Priority.INTERACTIVE if len(requests) == 1 else Priority.BULK
        responses = await infer_each(state.pool, capability, requests, priority)
        return _encoded(asked, spec, form, [form.row(response) for response in responses])

    return await by_best(lambda: _find(state, model, version, asked.parameters.get("capability")), ask)


def _find(state: ServerState, model: str, version: str, capability: str | None) -> Found:
    """The model, and what is wanted of it. Raises ModelNotFoundError, ModelUnavailableError, BadRequestError."""
    if version != VERSION:
        raise ModelNotFoundError(f"model {model!r} has only version {VERSION!r}")
    if capability is not None and not isinstance(capability, str):
        raise BadRequestError(f"the parameter `capability` is {capability!r:.40}, no name of a capability")
    if model in BY_NAME and model not in state.catalogue.specs:
        if capability not in (None, model):
            raise BadRequestError(
                f"the path names the capability {model!r}, the parameter `capability` says {capability!r}"
            )
        return state.pool.resolve(model), BY_NAME[model]
    spec = state.catalogue.get(model)
    if capability is None:
        offered = [BY_NAME[name] for name in spec.capabilities if name in BY_NAME]
        spoken = next((each for each in offered if each.tensors), offered[0] if offered else None)
    else:
        spoken = BY_NAME.get(capability) if capability in spec.capabilities else None
    if spoken is None:
        offers = ", ".join(spec.capabilities)
        raise ModelNotFoundError(f"model {model!r} does not offer {capability or 'any capability of ours'}: {offers}")
    return spec, spoken


def _form(capability: Capability[Any, Any, Any, Any]) -> TensorForm:
    if capability.tensors is None:
        routes = ", ".join(f"POST {endpoint.path}" for endpoint in capability.endpoints)
        raise InputError(f"{capability.name} is not offered as tensors; use {routes or 'its own routes (README)'}")
    return capability.tensors


def _described(tensor: Tensor) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    parameters: dict[str, Any] = {"optional": True} if tensor.optional else {}
    if tensor.labels:
        parameters["labels"] = ",".join(tensor.labels)
    return described | ({"parameters": parameters} if parameters else {})


def _rows(asked: InferBody, elements: list[list[Any]], form: TensorForm) -> list[dict[str, Any]]:
    """One dict of field values per row. Raises InputError."""
    forms = {tensor.name: tensor for tensor in form.inputs}
    columns: dict[str, list[Any]] = {}
    for tensor, values in zip(asked.inputs, elements, strict=True):
        if tensor.name not in forms or tensor.name in columns:
            fault = "is given twice" if tensor.name in columns else f"is none of {', '.join(forms)}"
            raise InputError(f"input {tensor.name!r} {fault}")
        columns[tensor.name] = rows(tensor, values, forms[tensor.name])
    if missing := [name for name, each in forms.items() if not each.optional and name not in columns]:
        raise InputError(f"input {missing[0]!r} is missing")
    if len({len(column) for column in columns.values()}) > 1:
        raise InputError(f"the inputs differ in rows: { {name: len(column) for name, column in columns.items()} }")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _request(form: TensorForm, number: int, values: dict[str, Any]) -> InferenceRequest:
    """One row as a request. Raises InputError naming row and input."""
    try:
        return form.request.model_validate(values)
    except ValidationError as error:
        fault = first_fault(error.errors(include_url=False, include_context=False, include_input=False), values)
        raise InputError(f"row {number}: {fault.field}: {fault.said}", field=fault.field) from None


def _check_outputs(asked: InferBody, form: TensorForm) -> None:
    known = [tensor.name for tensor in form.outputs]
    for output in asked.outputs:
        if output.name not in known:
            raise InputError(f"output {output.name!r} is none of {', '.join(known)}")
        if refused := output.parameters.keys() & {"classification", "shared_memory_region"}:
            raise InputError(f"output {output.name!r}: {', '.join(refused)} is not offered")


def _encoded(asked: InferBody, spec: ModelSpec, form: TensorForm, values: list[Any]) -> Response:
    wanted = {output.name: output.parameters for output in asked.outputs} or {each.name: {} for each in form.outputs}
    binary_default = bool(asked.parameters.get("binary_data_output", False))
    forms = {tensor.name: (index, tensor) for index, tensor in enumerate(form.outputs)}
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, parameters in wanted.items():
        index, tensor = forms[name]
        shape, elements = flat(tensor, [row[index] for row in values])
        output: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": shape}
        if parameters.get("binary_data", binary_default):
            parts.append(to_binary(tensor.datatype, elements))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = elements
        outputs.append(output)
    head: dict[str, Any] = {"model_name": spec.id, "model_version": VERSION, "outputs": outputs}
    if asked.id:
        head["id"] = asked.id
    json_part = msgspec.json.encode(head)
    if not parts:
        return Response(json_part, media_type="application/json")
    headers = {_HEADER_LENGTH: str(len(json_part))}
    return Response(b"".join((json_part, *parts)), 200, headers, "application/octet-stream")
