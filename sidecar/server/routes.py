"""Routes made from the capabilities: read the body, hand over, answer.

They stand in front of the framework's router, whose matching and dependency machinery would cost a request as much as
everything else that the server does for it. The framework still writes them into the OpenAPI document.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.capabilities import CAPABILITIES
from sidecar.capabilities.base import Capability, Endpoint, InferenceRequest, Meta
from sidecar.errors import BodyTimeoutError, RunnerTimeoutError, SidecarError
from sidecar.inference.batcher import Priority
from sidecar.inference.pool import Pool
from sidecar.inference.residency import parse_keep_alive
from sidecar.server.body import read_json
from sidecar.server.problem import from_error, from_unexpected, from_validation, problem

log = logging.getLogger("sidecar.server")

_BODY_S = 30.0
_BULK_PLACES = 64
_MODEL = re.escape("{model}")

AnyCapability = Capability[Any, Any, Any, Any]
T = TypeVar("T")


class CapabilityRoutes:
    """ASGI: POST to the path of an endpoint is answered here, the rest goes on to `app`."""

    def __init__(self, app: ASGIApp, pool: Pool, request_timeout_s: float) -> None:
        self._app = app
        self._pool = pool
        self._timeout_s = request_timeout_s
        found = [(capability, endpoint) for capability in CAPABILITIES for endpoint in capability.endpoints]
        self._endpoints = {endpoint.path: (capability, endpoint) for capability, endpoint in found}
        self._templates = [
            (re.compile(re.escape(endpoint.path).replace(_MODEL, "([^/]+)")), capability, endpoint)
            for capability, endpoint in found
            if "{model}" in endpoint.path
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        capability, endpoint, model = found
        scope["route"] = endpoint
        sent = b""

        async def work(body: bytes) -> BaseModel:
            nonlocal sent
            sent = body
            return await _infer_all(self._pool, capability, endpoint, _request(endpoint, body, model))

        try:
            if scope["method"] != "POST":
                await _method_not_allowed(scope, receive, send)
                return
            response = await answer(receive, self._timeout_s, work)
            if response is not None:
                await _send_json(send, response.__pydantic_serializer__.to_json(response))
        except SidecarError as error:
            await from_error(error)(scope, receive, send)
        except ValidationError as error:
            await from_validation(error, sent)(scope, receive, send)
        except Exception as error:  # a bug of ours must be an answer, too
            await from_unexpected(scope, error)(scope, receive, send)

    def _find(self, path: str) -> tuple[AnyCapability, Endpoint, str | None] | None:
        """The endpoint of a path, and the model that the path names."""
        if exact := self._endpoints.get(path):
            return *exact, None
        for template, capability, endpoint in self._templates:
            if match := template.fullmatch(path):
                return capability, endpoint, match[1]
        return None


async def answer(receive: Receive, timeout_s: float, work: Callable[[bytes], Awaitable[T]]) -> T | None:
    """What `work` makes of the body, or None when the client has gone meanwhile.

    Raises BodyTimeoutError, RunnerTimeoutError, and what `work` raises.
    """
    with Cut() as cut:
        try:
            cut.after(_BODY_S, "body")
            body = await _body(receive)
            cut.after(timeout_s, "time")
            cut.watch(receive)
            return await work(body)
        except asyncio.CancelledError:
            if cut.reason == "gone":
                return None
            if cut.reason == "body":
                raise BodyTimeoutError(f"the request's body did not arrive within {_BODY_S:g} s") from None
            if cut.reason == "time":
                raise RunnerTimeoutError(f"no answer within {timeout_s:g} s (REQUEST_TIMEOUT)") from None
            raise


class Cut:
    """Cancels the task that made it, for a reason: time over, or the client gone. What it has queued goes with it."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.reason = ""
        self._task = task
        self._open = True
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> "Cut":
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        if self._timer:
            self._timer.cancel()
        if self._watcher:
            self._watcher.cancel()

    def after(self, timeout_s: float, reason: str) -> None:
        """Cut then; replaces an earlier time."""
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._now, reason)

    def watch(self, receive: Receive) -> None:
        """Cut when the client goes. `receive` must have delivered the whole body."""

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._now("gone")

        self._watcher = asyncio.ensure_future(until_gone())

    def _now(self, reason: str) -> None:
        if self._open and not self.reason:
            self.reason = reason
            self._task.cancel()


def document(app: FastAPI) -> None:
    """Have `/openapi.json` show the capability routes with their examples."""
    documented = [_documented(capability, endpoint) for capability in CAPABILITIES for endpoint in capability.endpoints]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=app.version, routes=[*documented, *app.routes])
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _documented(capability: AnyCapability, endpoint: Endpoint) -> APIRoute:
    async def answered_by_capability_routes(request: Any) -> None: ...
    async def answered_by_its_model(model: str, request: Any) -> None: ...

    answered = answered_by_its_model if "{model}" in endpoint.path else answered_by_capability_routes
    # The framework derives the body's schema from the parameter's annotation.
    answered.__annotations__["request"] = endpoint.request
    return APIRoute(
        endpoint.path,
        answered,
        methods=["POST"],
        summary=endpoint.summary,
        operation_id=re.sub(r"\W+", "_", endpoint.path).strip("_"),
        tags=[capability.name],
        response_model=endpoint.response,
        openapi_extra={"requestBody": {"content": {"application/json": {"example": endpoint.example}}}},
    )


def _request(endpoint: Endpoint, body: bytes, model: str | None) -> BaseModel:
    """The body as the endpoint's request; a model that the path names is the one. Raises ValidationError."""
    request = read_json(endpoint.request, body)
    return request if model is None else request.model_copy(update={"model": model})


async def _infer_all(pool: Pool, capability: AnyCapability, endpoint: Endpoint, request: BaseModel) -> BaseModel:
    parts = endpoint.split(request)
    # A batch of one keeps nobody waiting.
    priority = Priority.BULK if endpoint.bulk and len(parts) > 1 else Priority.INTERACTIVE
    response: BaseModel = endpoint.join(await infer_each(pool, capability, parts, priority))
    return response


async def infer_each(
    pool: Pool, capability: AnyCapability, requests: Sequence[Any], priority: Priority
) -> list[BaseModel]:
    """One response per request, in order; the first failure ends them all."""
    if len(requests) == 1:
        return [await _infer(pool, capability, requests[0], priority)]
    # A batch feeds the queue as it drains: it never fills it for everybody else, nor overruns a short one by itself.
    places = asyncio.Semaphore(max(1, min(_BULK_PLACES, pool.queue_size_limit // 2)))

    async def one(request: InferenceRequest) -> BaseModel:
        async with places:
            return await _infer(pool, capability, request, priority)

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # What is still queued for a request that has failed is not worth computing.
        for task in tasks:
            task.cancel()


async def _infer(pool: Pool, capability: AnyCapability, request: InferenceRequest, priority: Priority) -> BaseModel:
    """The main path: prepare → pool → finish."""
    started = time.perf_counter()
    best = pool.resolve(capability.name, request.model)
    keep_alive_s = None if request.keep_alive is None else parse_keep_alive(request.keep_alive, 0.0)
    response: BaseModel | None = capability.shortcut(request, best.id)
    if response is None:
        item = capability.prepare(request)
        cost = capability.cost(item)
        spec, output = await pool.infer_by_best(capability.name, request.model, item, cost, priority, keep_alive_s)
        took_ms = round((time.perf_counter() - started) * 1000, 3)
        response = capability.finish(output, Meta(spec.id, took_ms, request))
    assert response is not None
    return response


async def _body(receive: Receive) -> bytes:
    message = await receive()
    parts = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def _send_json(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _method_not_allowed(scope: Scope, receive: Receive, send: Send) -> None:
    response = problem(405, "method_not_allowed", f"{scope['method']} {scope['path']}: only POST")
    response.headers["Allow"] = "POST"
    await response(scope, receive, send)
