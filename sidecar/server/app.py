"""Composition root of the server process: start-up → loop → shutdown."""

import asyncio
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from sidecar import __version__, process
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.errors import ConfigError, SidecarError
from sidecar.inference.pool import Pool
from sidecar.server import logs, models, problem, system
from sidecar.server.accesslog import AccessLog
from sidecar.server.control import Control, shared_socket
from sidecar.server.events import EventHub
from sidecar.server.http import LocalHttpProtocol
from sidecar.server.metrics import Metrics
from sidecar.server.routes import CapabilityRoutes, document
from sidecar.server.security import Gate
from sidecar.server.state import ServerState
from sidecar.settings import DESKTOP_ORIGINS, Launch, Settings

log = logging.getLogger("sidecar.server")

_BACKLOG = 2048


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
    metrics = Metrics()
    metrics.set_restarts(launch.restart_count)
    hub = EventHub()
    catalogue = Catalogue.of(settings)
    pool = Pool(catalogue, settings, lambda event, data: state.publish(event, data), log.info)
    metrics.watch(pool)
    state = ServerState(launch.instance_id, catalogue, ModelCache.of(settings), pool, hub, metrics, control.emit)
    listener = _listener(settings, launch, control)
    access = AccessLog(log.isEnabledFor(logging.INFO))
    app = Gate(
        CapabilityRoutes(make_app(state), pool, settings.request_timeout_s),
        token=launch.token if settings.auth == "on" else None,
        port=listener.getsockname()[1],
        origins=(*DESKTOP_ORIGINS, *settings.allowed_origins),
        max_body_bytes=settings.max_body_bytes,
        metrics=metrics,
        access=access,
    )
    server = _Server(_uvicorn_config(app, settings))

    def stop() -> None:
        state.stop()
        server.should_exit = True
        asyncio.get_running_loop().call_later(settings.drain_s, pool.give_up)

    control.listen(lambda message: _obey(message, stop))
    _on_terminate(stop)
    preload = asyncio.ensure_future(state.preload())
    await server.serve(sockets=[listener])
    state.stop()
    preload.cancel()
    await state.downloads.close()
    await pool.close()
    access.flush()


def make_app(state: ServerState) -> FastAPI:
    """The system routes, and the description of all."""

    app = FastAPI(
        title="ML Sidecar",
        version=__version__,
        # The documentation pages load scripts from a CDN; the console is ours.
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            SidecarError: problem.on_sidecar_error,
            HTTPException: problem.on_http_error,
            Exception: problem.on_unexpected,
        },
    )
    app.state.sidecar = state
    app.include_router(system.router)
    app.include_router(models.router)
    document(app)
    return app


def _uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=LocalHttpProtocol,
        ws="none",
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
