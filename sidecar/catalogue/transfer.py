"""One file: `.part`, resumed after whatever happened, hashed on the way, renamed only when it is right."""

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.catalogue.cache import PART, writing
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.origin import Interrupted, Origin
from sidecar.catalogue.permission import check_content
from sidecar.catalogue.retry import Retries
from sidecar.catalogue.spec import ModelFile, ModelSpec
from sidecar.catalogue.stream import Pipeline, read
from sidecar.errors import DownloadCancelledError, HashMismatchError

if TYPE_CHECKING:
    import httpx2

_BLOCK_BYTES = 1 << 20
_CORRUPT_TRIES = 2  # a wrong hash once may be the line; twice it is the file


class Wanted(NamedTuple):
    """A file of one commit, and what is known of it besides: the hub's hash of small files, S3's of most."""

    file: ModelFile
    git_sha1: str | None = None
    md5: str | None = None


class Stop:
    """Ends the transfers of one download, also those that wait for bytes."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._busy: dict[object, httpx2.Response | None] = {}

    def set(self) -> None:
        """Stop: nobody writes a file who has not begun, and who waits for bytes is woken."""
        with self._lock:
            self.event.set()
            responses = [response for response in self._busy.values() if response is not None]
        for response in responses:
            _disconnect(response)

    def writing(self) -> bool:
        """Whether a transfer has its hands on a file still."""
        with self._lock:
            return bool(self._busy)

    @contextmanager
    def guard(self, response: "httpx2.Response | None" = None) -> Iterator[None]:
        """The time in which a transfer touches files. Raises DownloadCancelledError if it is too late to begin."""
        key = object()
        with self._lock:
            if self.event.is_set():
                raise DownloadCancelledError("cancelled; what has arrived is kept")
            self._busy[key] = response
        try:
            yield
        finally:
            with self._lock:
                del self._busy[key]


def _disconnect(response: "httpx2.Response") -> None:
    """Wake a thread that waits in recv: closing the descriptor would not, shutting the connection down does."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream else None
    if connection is not None:
        with suppress(OSError, ValueError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Transfer:
    """Fetches one file. `done` (bytes that are right as far as known) and `received` may be read by other threads."""

    def __init__(
        self, spec: ModelSpec, commit: str, wanted: Wanted, folder: Path, origin: Origin, lockfile: Lockfile, stop: Stop
    ) -> None:
        assert spec.source and spec.source.origin
        self.wanted = wanted
        self.target = folder / wanted.file.path
        self.part = folder / (wanted.file.path + PART)
        self.done = 0
        self.received = 0
        self.verifying = False
        self.result: ModelFile | None = None
        self._spec = spec
        self._repo = spec.source.origin
        self._commit = commit
        self._origin = origin
        self._lockfile = lockfile
        self._stop = stop
        self._retries = Retries(origin, self._repo, stop.event)
        self._size: int | None = wanted.file.size
        self._digest = hashlib.sha256()
        self._git: Any = None
        self._md5: Any = None
        self._furthest = 0
        self._careful = False

    def run(self) -> ModelFile:
        """The file as it is on disk now, with size and hash. Raises SidecarError."""
        with writing(self.target.parent, self._spec.id):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            for last in range(1, _CORRUPT_TRIES + 1):
                with self._stop.guard():
                    self._resume()
                while self._size is None or self.done < self._size:
                    try:
                        self._stream()
                    except Interrupted as error:
                        self._retries.after(error)
                with self._stop.guard():
                    fault = self._fault()
                    if fault is None:
                        return self._finish()
                    self.part.unlink(missing_ok=True)
                self._careful = True
                if last == _CORRUPT_TRIES:
                    raise self._mismatch(fault)
        raise AssertionError("unreachable")

    def _resume(self) -> None:
        """Hash what an earlier try has left; a part that is too long belongs to nothing."""
        self._start_over()
        if self.target.is_file() and not self.part.exists():
            os.replace(self.target, self.part)  # its hash is not known yet, or its size is wrong: look at it again
        size = self.part.stat().st_size if self.part.exists() else 0
        if self._size is not None and size > self._size:
            self.part.unlink()
            return
        self.verifying = True
        if size:
            with self.part.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    self._retries.check()
                    self._add(block)
        self.verifying = False

    def _start_over(self) -> None:
        self.done = 0
        self._digest = hashlib.sha256()
        # Git hashes a header with the size in front; only small files have this hash for their name.
        self._git = None
        if self.wanted.git_sha1 and self._size is not None:
            self._git = hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
        self._md5 = hashlib.md5(usedforsecurity=False) if self.wanted.md5 else None

    def _add(self, block: bytes | memoryview) -> None:
        self._digest.update(block)
        for other in (self._git, self._md5):
            if other is not None:
                other.update(block)
        self.done += len(block)

    def _stream(self) -> None:
        """One request's bytes onto the part. Raises Interrupted when they end early."""
        self._retries.check()
        path = self.wanted.file.path
        with (
            self._origin.open(self._repo, self._commit, path, self.done) as response,
            self._stop.guard(response),
            self.part.open("ab", buffering=0) as file,
        ):
            self._accept(response)
            file.truncate(self.done)
            with Pipeline(self._add) as pipeline:
                self._receive(file, read(response, pipeline, self._origin.stall_s, self._careful), pipeline)
        size: int = self.done if self._size is None else self._size
        self._size = size
        if self.done < size:
            raise Interrupted(f"the connection ended after {self.done:,} of {size:,} bytes")

    def _receive(self, file: FileIO, buffers: Iterator[tuple[memoryview, int]], pipeline: Pipeline) -> None:
        position = self.done
        for buffer, count in buffers:
            self._retries.check()
            if self._size is not None and position + count > self._size:
                raise Interrupted("more bytes than the file has")
            _write(file, buffer[:count])
            pipeline.put(buffer, count)
            position += count
            self.received += count
            # Bytes that had been here before are no progress: a server may send the same ones for ever.
            if position > self._furthest:
                self._furthest = position
                self._retries.progressed()

    def _accept(self, response: "httpx2.Response") -> None:
        """See from where the server sends and how much the whole is. Raises Interrupted, after which it starts at 0."""
        total: int | None = None
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
            if match is None or int(match[1]) != self.done:
                self._start_over()
                raise Interrupted("the server sends another range than the one asked for")
            total = int(match[2]) if match[2] != "*" else None
        elif response.status_code == 416:
            self._start_over()
            raise Interrupted("the server has less of this file than we")
        else:
            if self.done:
                self._start_over()
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if self._size is None and total is not None:
            self._size = total

    def _fault(self) -> str | None:
        """What is wrong with the whole file, or None."""
        expected, found = self.wanted.file.sha256, self._digest.hexdigest()
        if expected and found != expected:
            return f"sha256 is {found}, expected {expected}"
        if self._git is not None and self._git.hexdigest() != self.wanted.git_sha1:
            return f"git's sha1 is {self._git.hexdigest()}, the hub says {self.wanted.git_sha1}"
        if self._md5 is not None and self._md5.hexdigest() != self.wanted.md5:
            return f"md5 is {self._md5.hexdigest()}, S3 says {self.wanted.md5}"
        return None

    def _finish(self) -> ModelFile:
        # Open for writing: Windows flushes no descriptor that cannot write.
        if not self.part.exists():
            self.part.touch()  # a file of no bytes is never asked for
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        check_content(self._spec, self.wanted.file, self.part, self._lockfile)
        os.replace(self.part, self.target)
        _sync_folder(self.target.parent)
        self.result = self.wanted.file.model_copy(update={"size": self.done, "sha256": self._digest.hexdigest()})
        return self.result

    def _mismatch(self, fault: str) -> HashMismatchError:
        return HashMismatchError(
            f"model {self._spec.id!r}: {self.wanted.file.path} of {self._repo}@{self._commit[:12]} came wrong "
            f"{_CORRUPT_TRIES} times: {fault}; it was thrown away. A mirror or proxy may change files: check "
            f"{self._origin.setting}, or correct the hash if the catalogue entry is your own"
        )


def _write(file: FileIO, view: memoryview) -> None:
    """All of it: an unbuffered write may take less, the last bytes of a full volume for one."""
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    """Make the new name outlast a power cut. Windows opens no folders, and needs no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
