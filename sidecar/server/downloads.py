"""Downloads of the server: a few at a time, one per model, with progress to listeners and to the handshake."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.downloader import DownloadProgress, check_downloadable, download
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import DownloadCancelledError, DownloadError, SidecarError
from sidecar.server.unfinished import Unfinished

log = logging.getLogger("sidecar.server")

Publish = Callable[[str, dict[str, Any]], None]

_PARALLEL_MODELS = 3


@dataclass
class _Running:
    work: "Future[Path]"
    cancel: threading.Event
    progress: DownloadProgress | None = None
    task: "asyncio.Task[None] | None" = None


class Downloads:
    """Starts, shows and cancels; the others wait for their turn, in the order in which they were asked for.

    `done` is called in the event loop when a model has become complete.
    """

    def __init__(self, cache: ModelCache, publish: Publish, done: Callable[[ModelSpec], None]) -> None:
        self._cache = cache
        self._publish = publish
        self._done = done
        # Threads of their own: a silent hub must not take those that the rest of the server works in.
        self._workers = ThreadPoolExecutor(_PARALLEL_MODELS, thread_name_prefix="downloads")
        self._running: dict[str, _Running] = {}
        self._closing = False
        self._unfinished = Unfinished(cache.lockfile.path.with_name("downloads.json"))
        self._errors: dict[str, SidecarError] = {}
        self.received_bytes: dict[str, int] = {}
        """Over the network, per model, since the start."""

    def start(self, spec: ModelSpec) -> None:
        """Begin, unless it is under way. The outcome shows in `state` and on /events."""
        if spec.id in self._running:
            return
        self._errors.pop(spec.id, None)
        self._unfinished.add(spec.id)
        loop, cancel = asyncio.get_running_loop(), threading.Event()

        def report(progress: DownloadProgress) -> None:
            loop.call_soon_threadsafe(self._progressed, spec.id, running, progress)

        work = self._workers.submit(download, spec, self._cache, report, cancel)
        running = self._running[spec.id] = _Running(work, cancel)
        running.task = loop.create_task(self._run(spec, running), name=f"download-{spec.id}")

    def resume(self, catalogue: Catalogue) -> None:
        """Go on with what an earlier server had begun and did not live to end."""
        for model_id in self._unfinished.ids():
            try:
                spec = catalogue.get(model_id)
                catalogue.check_supported(spec)
                check_downloadable(spec, self._cache)
            except SidecarError as error:
                log.warning("the download of %s does not go on: %s", model_id, error.message)
                self._unfinished.remove(model_id)
            else:
                self.start(spec)

    def cancel(self, model_id: str) -> bool:
        """Ask it to stop; what has arrived stays for the next try. False if nothing was under way."""
        running = self._running.get(model_id)
        if running is None:
            return False
        running.cancel.set()
        running.work.cancel()
        return True

    def progress(self, model_id: str) -> DownloadProgress | None:
        """How far a download under way has come."""
        running = self._running.get(model_id)
        return running.progress or DownloadProgress(model_id, 0, None, state="waiting") if running else None

    def error(self, model_id: str) -> SidecarError | None:
        """Why the last download failed."""
        return self._errors.get(model_id)

    async def close(self) -> None:
        """Stop all; parts stay, and the next server goes on."""
        self._closing = True
        for model_id in self._running:
            self.cancel(model_id)
        self._workers.shutdown(wait=False)
        tasks = [running.task for running in self._running.values() if running.task]
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)

    async def _run(self, spec: ModelSpec, running: _Running) -> None:
        ended = asyncio.wrap_future(running.work)
        await asyncio.wait([ended])
        error = _cancelled(spec) if ended.cancelled() else ended.exception()
        try:
            if error is None:
                self._publish("download", {"model": spec.id, "state": "available"})
                self._done(spec)
            elif isinstance(error, SidecarError):
                self._failed(spec, error)
            else:  # a bug of ours must show as a failure, too
                log.error("unexpected error while %s is downloaded", spec.id, exc_info=error)
                self._failed(spec, DownloadError(f"{spec.id}: {type(error).__name__}; the log has more"))
        finally:
            del self._running[spec.id]
            if not self._closing:
                self._unfinished.remove(spec.id)

    def _failed(self, spec: ModelSpec, error: SidecarError) -> None:
        self._errors[spec.id] = error
        self._publish("download", {"model": spec.id, "state": "failed", "code": error.code, "error": error.message})

    def _progressed(self, model_id: str, running: _Running, progress: DownloadProgress) -> None:
        before = running.progress.received if running.progress else 0
        self.received_bytes[model_id] = self.received_bytes.get(model_id, 0) + max(0, progress.received - before)
        if self._running.get(model_id) is running:  # not one that came in after the end
            running.progress = progress
            self._publish("download", {"model": model_id, **asdict(progress)})


def _cancelled(spec: ModelSpec) -> DownloadCancelledError:
    return DownloadCancelledError(f"model {spec.id!r}: cancelled before it began")
