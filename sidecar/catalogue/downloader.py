"""A model from the hub or S3 into the cache. Synchronous and thread-safe: for the server's threads and the terminal."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidecar.catalogue.cache import ModelCache, check_room
from sidecar.catalogue.hub import Hub
from sidecar.catalogue.lockfile import Entry
from sidecar.catalogue.origin import Origin
from sidecar.catalogue.permission import check_consent
from sidecar.catalogue.retry import Retries
from sidecar.catalogue.s3 import S3
from sidecar.catalogue.spec import ModelFile, ModelSpec, is_commit, safe_path
from sidecar.catalogue.transfer import Stop, Transfer, Wanted
from sidecar.errors import (
    DownloadCancelledError,
    DownloadError,
    HashMismatchError,
    ModelUnavailableError,
    RevisionNotFoundError,
    SidecarError,
)

_PARALLEL_FILES = 3
_REPORT_S = 0.25
_RATE_WINDOW_S = 5.0
_POLL_S = 0.05
_LEAVE_S = 0.5


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes of all files together, resumed ones included; rate in bytes/s; a total or an end not yet known is None.

    `received` are the bytes that came over the network in this run.
    """

    item: str
    done: int
    total: int | None
    rate: float = 0.0
    eta_s: float | None = None
    state: Literal["waiting", "resolving", "downloading", "verifying", "copying"] = "downloading"
    received: int = 0


OnProgress = Callable[[DownloadProgress], None]


def download(
    spec: ModelSpec,
    cache: ModelCache,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    *,
    update: bool = False,
) -> Path:
    """Folder with the whole, verified model; at once if it is there already.

    One download per model runs at a time, however many ask, in however many processes; the others wait and find it
    done. `cancel` ends it within a second. `update` resolves a branch or tag anew instead of taking the locked commit.
    Raises DownloadError and its children; a part of the model stays for the next try.
    """
    cancel = cancel or threading.Event()
    if spec.is_hub and cache.state(spec) == "complete" and not update:
        return cache.folder(spec)
    check_downloadable(spec, cache)
    if not spec.is_hub:
        return spec.folder
    report = on_progress or (lambda _: None)
    waiting = DownloadProgress(spec.id, 0, cache.size_bytes(spec), state="waiting")
    with cache.exclusive(spec.id, cancel, lambda: report(waiting)):
        if cache.state(spec) == "complete" and not update:
            return cache.folder(spec)
        work = _Download(spec, cache, report, cancel)
        try:
            return work.run(update)
        finally:
            work.origin.close()


def check_downloadable(spec: ModelSpec, cache: ModelCache) -> None:
    """Raises ModelUnavailableError, LicenceRequiredError, PickleRefusedError for what can be told without a request."""
    if spec.is_hub:
        check_consent(spec, spec.files, cache.lockfile)
    elif spec.source and spec.source.setting:
        raise ModelUnavailableError(f"model {spec.id!r}: {spec.source.setting} does not say where it is; set it")
    elif missing := cache.missing(spec):
        raise ModelUnavailableError(f"model {spec.id!r} is no download and {spec.folder} lacks {', '.join(missing)}")


class _Download:
    """One download, in the hands of the thread that called; transfers have threads of their own."""

    def __init__(self, spec: ModelSpec, cache: ModelCache, report: OnProgress, cancel: threading.Event) -> None:
        assert spec.source and spec.source.origin
        self._spec = spec
        self._repo = spec.source.origin
        self._ref = spec.source.revision
        self._cache = cache
        self._report = report
        self._cancel = cancel
        self.origin: Origin = S3(spec.id, cache.s3) if spec.source.s3 else Hub(spec.id)
        self._stop = Stop()
        self._meter = _Meter(spec.id, report)

    def run(self, update: bool) -> Path:
        self._report(DownloadProgress(self._spec.id, 0, None, state="resolving"))
        commit, wanted = self._aside(lambda: self._plan(update))
        folder = self._cache.root / self._spec.id / commit
        present = [item for item in wanted if _whole(folder, item.file)]
        transfers = [
            Transfer(self._spec, commit, item, folder, self.origin, self._cache.lockfile, self._stop)
            for item in wanted
            if item not in present
        ]
        self._check_space(transfers)
        self._meter.start(transfers, [item.file for item in present])
        files = [item.file for item in present] + self._transfer(transfers)
        files.sort(key=lambda file: file.path)
        self._cache.lockfile.record(
            self._spec.id, Entry(repo=self._repo, ref=self._ref, revision=commit, files=tuple(files))
        )
        return folder

    # The plan: which commit, which files, how large and with which hash.

    def _plan(self, update: bool) -> tuple[str, list[Wanted]]:
        retries = Retries(self.origin, self._repo, self._stop.event)
        locked = None if update else self._cache.lockfile.entry(self._spec)
        if locked and is_commit(locked.revision):
            commit, files = locked.revision, self._cache.files(self._spec)
        else:
            commit, files = self._resolve(retries)
        check_consent(self._spec, files, self._cache.lockfile)
        return commit, [self._wanted(retries, commit, file) for file in files]

    def _resolve(self, retries: Retries) -> tuple[str, tuple[ModelFile, ...]]:
        """Commit and files by what the catalogue says; the hub is asked only for what that leaves open."""
        patterns = self._spec.source.include if self._spec.source else ()
        if self._ref is not None and is_commit(self._ref) and not patterns:
            return self._ref, self._spec.files
        ref = self._ref or "main"
        commit, paths = retries.run(lambda: self.origin.resolve(self._repo, ref))
        if is_commit(ref) and commit != ref:
            raise HashMismatchError(
                f"model {self._spec.id!r}: asked for {self._repo}@{ref}, {self.origin.name} answers with {commit!r}; "
                f"nothing was fetched. Check {self.origin.setting}"
            )
        if not is_commit(commit):
            raise DownloadError(
                f"model {self._spec.id!r}: {self._repo}@{ref} resolves to {commit!r}, which is no commit"
            )
        return commit, (*self._spec.files, *self._chosen(paths, patterns))

    def _chosen(self, paths: list[str], patterns: tuple[str, ...]) -> tuple[ModelFile, ...]:
        """The files that the entry's patterns name; what the hub says is not trusted to stay in the folder."""
        chosen = self._spec.matching(paths)
        if patterns and not chosen:
            raise RevisionNotFoundError(
                f"model {self._spec.id!r}: {self._repo} has no file like {', '.join(patterns)}; correct its "
                "place, or `source.include` in its entry"
            )
        try:
            return tuple(ModelFile(path=safe_path(path)) for path in chosen)
        except ValueError as error:
            raise DownloadError(f"model {self._spec.id!r}: {self._repo} has a file that is refused: {error}") from None

    def _wanted(self, retries: Retries, commit: str, file: ModelFile) -> Wanted:
        if file.size is not None and file.sha256:
            return Wanted(file)
        remote = retries.run(lambda: self.origin.metadata(self._repo, commit, file.path))
        for name, ours, theirs in (("size", file.size, remote.size), ("sha256", file.sha256, remote.sha256)):
            if None not in (ours, theirs) and ours != theirs:
                origin = self.origin
                raise HashMismatchError(
                    f"model {self._spec.id!r}: {file.path} of {self._repo}@{commit[:12]}: {origin.name} says {name} "
                    f"{theirs}, catalogue or lock say {ours}; nothing was fetched. Check {origin.setting}, or correct "
                    "the entry if it is your own"
                )
        known = {"size": remote.size if file.size is None else file.size, "sha256": file.sha256 or remote.sha256}
        return Wanted(file.model_copy(update=known), remote.git_sha1, remote.md5)

    def _check_space(self, transfers: list[Transfer]) -> None:
        """On the volume of the cache; what a part has already is paid for."""
        needed = sum((one.wanted.file.size or 0) - _size(one.part) for one in transfers)
        check_room(self._cache.root, self._spec.id, needed)

    # The transfers: a few threads, which the caller's thread watches.

    def _transfer(self, transfers: list[Transfer]) -> list[ModelFile]:
        waiting: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        for one in sorted(transfers, key=lambda one: -(one.wanted.file.size or 0)):
            waiting.put(one)
        results: list[ModelFile] = []

        def work() -> None:
            while not self._stop.event.is_set():
                try:
                    one = waiting.get_nowait()
                except queue.Empty:
                    return
                results.append(one.run())

        try:
            self._watch([work] * min(_PARALLEL_FILES, len(transfers)))
        finally:
            self._meter.tick(last=True)
        return results

    def _aside(self, job: Callable[[], tuple[str, list[Wanted]]]) -> tuple[str, list[Wanted]]:
        """Run a job that may wait for the network where a cancel does not have to wait for it."""
        results: list[tuple[str, list[Wanted]]] = []
        self._watch([lambda: results.append(job())])
        return results[0]

    def _watch(self, jobs: list[Callable[[], None]]) -> None:
        """Run the jobs; the first error, or a cancel, stops all of them."""
        errors: list[BaseException] = []
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()

        def guarded(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:
                errors.append(error)
            finally:
                ended.put(None)

        # Daemons: one that is stuck in a connect is left behind, it has no file open and will open none.
        threads = [threading.Thread(target=guarded, args=(job,), name="download", daemon=True) for job in jobs]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running and not errors:
                with suppress(queue.Empty):
                    ended.get(timeout=_POLL_S)
                    running -= 1
                if self._cancel.is_set():
                    raise DownloadCancelledError(f"model {self._spec.id!r}: cancelled; what has arrived is kept")
                self._meter.tick()
        except BaseException:
            self._leave(threads)
            raise
        if errors:
            self._leave(threads)
            raise next((error for error in errors if isinstance(error, SidecarError)), errors[0])

    def _leave(self, threads: list[threading.Thread]) -> None:
        self._stop.set()
        end = time.monotonic() + _LEAVE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        while self._stop.writing():  # a slow disk: the lock must not be given up before
            time.sleep(_POLL_S)


class _Meter:
    """Sums up the transfers, at most four times a second."""

    def __init__(self, model_id: str, report: OnProgress) -> None:
        self._model_id = model_id
        self._report = report
        self._transfers: list[Transfer] = []
        self._present = 0
        self._total: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def start(self, transfers: list[Transfer], present: list[ModelFile]) -> None:
        sizes = [one.wanted.file.size for one in transfers]
        self._transfers = transfers
        self._present = sum(file.size or 0 for file in present)
        self._total = None if None in sizes else self._present + sum(size or 0 for size in sizes)
        self._seen = deque([(time.monotonic(), 0)])

    def tick(self, last: bool = False) -> None:
        now = time.monotonic()
        if not self._transfers or (not last and now - self._seen[-1][0] < _REPORT_S):
            return
        self._seen.append((now, sum(one.received for one in self._transfers)))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()
        (before, old), (_, new) = self._seen[0], self._seen[-1]
        rate = (new - old) / (now - before) if now > before else 0.0
        done = self._present + sum(one.done for one in self._transfers)
        left = None if self._total is None else self._total - done
        verifying = any(one.verifying for one in self._transfers)
        self._report(
            DownloadProgress(
                self._model_id,
                done,
                self._total,
                rate,
                left / rate if rate and left is not None else None,
                "verifying" if verifying else "downloading",
                new,
            )
        )


def _whole(folder: Path, file: ModelFile) -> bool:
    """Under its final name, and so verified; of unknown size it is fetched again."""
    return file.size is not None and file.sha256 is not None and _size(folder / file.path) == file.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
