"""Composition root of the server process: start-up → loop → shutdown."""

import asyncio
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from sidecar import __version__, process
from sidecar.capabilities import CAPABILITIES
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.profiles import Profiles
from sidecar.errors import ConfigError, SidecarError
from sidecar.inference.pool import Pool
from sidecar.server import (
    backchannel,
    installs,
    live,
    logs,
    models,
    oip,
    problem,
    profiles,
    recordings,
    synthesis,
    system,
    transcription,
)
from sidecar.server.accesslog import AccessLog
from sidecar.server.audio import AUDIO_PATHS
from sidecar.server.control import Control, shared_socket
from sidecar.server.events import EventHub
from sidecar.server.gpu import Gpu
from sidecar.server.head import Heads
from sidecar.server.http import LocalHttpProtocol
from sidecar.server.metrics import Metrics
from sidecar.server.openai import models as openai_models
from sidecar.server.openai import speech as openai_speech
from sidecar.server.openai import transcription as openai_transcription
from sidecar.server.ratelimit import RateLimit
from sidecar.server.routes import CapabilityRoutes, document
from sidecar.server.security import Gate
from sidecar.server.state import ServerState
from sidecar.settings import DESKTOP_ORIGINS, Launch, Settings

log = logging.getLogger("sidecar.server")

ROUTERS = (
    system.router,
    models.router,
    synthesis.router,
    profiles.router,
    recordings.router,
    transcription.router,
    live.router,
    openai_models.router,
    openai_speech.router,
    openai_transcription.router,
    backchannel.router,
    oip.router,
)
"""A new file of routes is one line here; those of most capabilities are made from their registry (routes.py)."""

_BACKLOG = 2048
_MAX_MESSAGE_BYTES = 8_000_000


def main(argv: list[str]) -> int:
    """`python -m sidecar serve`: only the supervisor starts it."""
    control = Control()
    process.die_with_parent()
    process.raise_file_limit()
    launch = Launch.take()
    settings = Settings.load()
    logs.configure(settings.log_level)
    if settings.auth == "on" and not launch.token:
        raise ConfigError("serve: no token; the server is started by `supervise`, not by hand")
    _run(_serve(settings, launch, control))
    return 0


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # no wheel for Windows
        asyncio.run(serving)
    else:
        uvloop.run(serving)


async def _serve(settings: Settings, launch: Launch, control: Control) -> None:
    for capability in CAPABILITIES:
        capability.configure(settings)
    state = _assemble(settings, launch, control)
    listener = _listener(settings, launch, control)
    access = AccessLog(log.isEnabledFor(logging.INFO))
    app = _gate(make_app(state), state, launch.token, listener.getsockname()[1], access)
    server = _Server(_uvicorn_config(app, settings))

    def stop() -> None:
        state.stop()
        server.should_exit = True
        asyncio.get_running_loop().call_later(settings.drain_s, state.pool.give_up)

    control.listen(lambda message: _obey(message, stop))
    _on_terminate(stop)
    background = [
        asyncio.ensure_future(_begin(state)),
        asyncio.ensure_future(installs.watch(state.profiles.fingerprint, state.profiles_changed)),
        asyncio.ensure_future(installs.watch(state.catalogue.fingerprint, state.catalogue_changed)),
    ]
    await server.serve(sockets=[listener])
    state.stop()
    for task in background:
        task.cancel()
    await asyncio.gather(state.downloads.close(), state.installs.close())
    await state.pool.close()
    access.flush()


async def _begin(state: ServerState) -> None:
    """First what answers, then what the last server left half-way."""
    await state.preload()
    state.downloads.resume(state.catalogue)


def _assemble(settings: Settings, launch: Launch, control: Control) -> ServerState:
    """The parts of the server, wired up; nothing runs yet."""
    metrics = Metrics()
    metrics.server_restarts = launch.restart_count
    environments = Profiles.of(settings)
    catalogue = Catalogue.of(settings, environments)
    cache = ModelCache.of(settings)
    gpu = Gpu()

    def publish(event: str, data: dict[str, Any]) -> None:
        state.publish(event, data)

    pool = Pool(catalogue, settings, publish, log.info, environments.interpreter, vram=gpu.vram)
    state = ServerState(
        launch.instance_id, catalogue, cache, pool, EventHub(), metrics, control.emit, settings, gpu, environments
    )
    metrics.watch(pool, state.downloads)
    return state


def _gate(app: ASGIApp, state: ServerState, token: str | None, port: int, access: AccessLog) -> Gate:
    settings = state.settings
    per_minute = settings.rate_limit_per_minute
    return Gate(
        Heads(CapabilityRoutes(app, state.pool, settings.request_timeout_s)),
        token=token if settings.auth == "on" else None,
        port=port,
        origins=(*DESKTOP_ORIGINS, *settings.allowed_origins),
        max_body_bytes=settings.max_body_bytes,
        audio_paths=AUDIO_PATHS,
        max_audio_bytes=settings.max_audio_bytes,
        metrics=state.metrics,
        access=access,
        limit=RateLimit(per_minute, time.monotonic) if per_minute else None,
    )


def make_app(state: ServerState) -> FastAPI:
    """The system routes, and the description of all."""

    app = FastAPI(
        title="ML Sidecar",
        version=__version__,
        # The documentation pages load scripts from a CDN; the console is ours.
        docs_url=None,
        redoc_url=None,
        # As the capability routes: what a body is, its content says. Pages of other origins are refused by the gate.
        strict_content_type=False,
        exception_handlers={
            SidecarError: problem.on_sidecar_error,
            RequestValidationError: problem.on_invalid,
            HTTPException: problem.on_http_error,
            ClientDisconnect: problem.on_disconnect,
            Exception: problem.on_unexpected,
        },
    )
    app.state.sidecar = state
    for router in ROUTERS:
        app.include_router(router)
    document(app)
    return app


def _uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=LocalHttpProtocol,
        ws="websockets-sansio",
        # Of one message; a minute of sound is 2 MB.
        ws_max_size=_MAX_MESSAGE_BYTES,
        # Here the system tells when a client is gone. A pong would wait behind the sound of one that is ahead of the
        # recogniser, which nobody reads for the moment: it would be cut off for being quick.
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=60,
        # Requests end themselves at `drain_s`, with an answer; this is for what does not.
        timeout_graceful_shutdown=math.ceil(settings.drain_s + 1),
    )


def _listener(settings: Settings, launch: Launch, control: Control) -> socket.socket:
    """The supervisor's socket; where it could not be handed over, one of our own, whose port is reported."""
    if launch.socket_fd is not None:
        return socket.socket(fileno=launch.socket_fd)
    if share := control.take_shared_socket():
        return shared_socket(share)
    listener = socket.create_server((settings.host, settings.port), backlog=_BACKLOG)
    control.emit("bound", port=listener.getsockname()[1])
    return listener


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn raises the signals again after its shutdown, which would cut ours short."""
        yield


def _on_terminate(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
        else:
            loop.add_signal_handler(number, stop)


def _obey(message: dict[str, Any], stop: Callable[[], None]) -> None:
    if message.get("op") == "stop":
        stop()
    else:
        log.warning("control message %r ignored", message.get("op"))
