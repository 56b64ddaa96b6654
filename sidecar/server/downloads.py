"""Downloads of the server: one thread each, progress to listeners and to the handshake, one per model at a time."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.downloader import DownloadProgress, download
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import SidecarError

Publish = Callable[[str, dict[str, Any]], None]


@dataclass
class _Running:
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: DownloadProgress | None = None
    task: "asyncio.Task[None] | None" = None


class Downloads:
    """Starts, shows and cancels. `done` is called in the event loop when a model has become complete."""

    def __init__(self, cache: ModelCache, publish: Publish, done: Callable[[ModelSpec], None]) -> None:
        self._cache = cache
        self._publish = publish
        self._done = done
        self._running: dict[str, _Running] = {}
        self._errors: dict[str, SidecarError] = {}

    def start(self, spec: ModelSpec) -> None:
        """Begin, unless it is under way. The outcome shows in `state` and on /events."""
        if spec.id in self._running:
            return
        self._errors.pop(spec.id, None)
        running = self._running[spec.id] = _Running()
        running.task = asyncio.get_running_loop().create_task(self._run(spec, running), name=f"download-{spec.id}")

    def cancel(self, model_id: str) -> bool:
        """Ask it to stop; what has arrived stays for the next try. False if nothing was under way."""
        running = self._running.get(model_id)
        if running:
            running.cancel.set()
        return running is not None

    def progress(self, model_id: str) -> DownloadProgress | None:
        """How far a download under way has come."""
        running = self._running.get(model_id)
        return running.progress or DownloadProgress(model_id, 0, None, state="waiting") if running else None

    def error(self, model_id: str) -> SidecarError | None:
        """Why the last download failed."""
        return self._errors.get(model_id)

    async def close(self) -> None:
        """Stop all; parts stay."""
        for running in self._running.values():
            running.cancel.set()
        tasks = [running.task for running in self._running.values() if running.task]
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)

    async def _run(self, spec: ModelSpec, running: _Running) -> None:
        loop = asyncio.get_running_loop()

        def report(progress: DownloadProgress) -> None:
            loop.call_soon_threadsafe(self._progressed, spec.id, running, progress)

        try:
            await asyncio.to_thread(download, spec, self._cache, report, running.cancel)
        except SidecarError as error:
            self._errors[spec.id] = error
            self._publish("download", {"model": spec.id, "state": "failed", "code": error.code, "error": error.message})
        else:
            self._publish("download", {"model": spec.id, "state": "available"})
            self._done(spec)
        finally:
            del self._running[spec.id]

    def _progressed(self, model_id: str, running: _Running, progress: DownloadProgress) -> None:
        if self._running.get(model_id) is running:  # not one that came in after the end
            running.progress = progress
            self._publish("download", {"model": model_id, **asdict(progress)})
