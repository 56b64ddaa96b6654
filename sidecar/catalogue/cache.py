"""The weight cache: `<cache>/models/<id>/<commit>/…`. A file has its final name only after size and hash were right."""

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from sidecar.catalogue.lockfile import Consent, Entry, Lockfile
from sidecar.catalogue.s3 import Access
from sidecar.catalogue.spec import NOWHERE, ModelFile, ModelSpec, is_commit
from sidecar.errors import (
    BadRequestError,
    CacheReadOnlyError,
    ConfigError,
    DiskFullError,
    DownloadCancelledError,
    DownloadError,
    SidecarError,
)
from sidecar.settings import Settings

State = Literal["absent", "partial", "complete"]

PART = ".part"
_BLOCK_BYTES = 1 << 20
_POLL_S = 0.1
_PART_KEPT_S = 14 * 86400.0
_SPARE_BYTES = 16 << 20  # the lock file, a database, a log: what else wants to be written there


class Garbage(NamedTuple):
    """What a collection removed."""

    paths: list[Path]
    size_bytes: int


class ModelCache:
    """Where models lie, and whether they are whole. Safe between threads and processes."""

    def __init__(self, root: Path, lockfile: Lockfile, s3: Access | None = None) -> None:
        self.root = root
        self.lockfile = lockfile
        self.s3 = s3

    @classmethod
    def of(cls, settings: Settings) -> "ModelCache":
        """The cache of these settings."""
        return cls(settings.cache_dir / "models", Lockfile(settings.data_dir / "models.lock.json"), Access.of(settings))

    def entry(self, spec: ModelSpec) -> Entry | None:
        """The lock's entry; a damaged lock is as good as none here, the download is what complains."""
        try:
            return self.lockfile.entry(spec)
        except ConfigError:
            return None

    def consent(self, model_id: str) -> Consent:
        """What the user agreed to; nothing where the lock is damaged."""
        try:
            return self.lockfile.consent(model_id)
        except ConfigError:
            return Consent()

    def revision(self, spec: ModelSpec) -> str | None:
        """The commit that the model has here, or None where it was never resolved."""
        if entry := self.entry(spec):
            return entry.revision
        pinned = spec.source.revision if spec.source else None
        return pinned if is_commit(pinned) else None

    def folder(self, spec: ModelSpec) -> Path:
        """Where the files are or will be; a folder that does not exist where nothing is resolved yet."""
        if not spec.is_hub:
            return spec.folder
        return self.root / spec.id / (self.revision(spec) or NOWHERE.name)

    def files(self, spec: ModelSpec) -> tuple[ModelFile, ...]:
        """The entry's files, with size and hash from the lock where the catalogue has none."""
        entry = self.entry(spec) if spec.is_hub else None
        if entry is None:
            return spec.files
        known = {file.path: file for file in entry.files}
        named = tuple(_merged(file, known.pop(file.path, None)) for file in spec.files)
        return (*named, *known.values()) if spec.source and spec.source.include else named

    def placed(self, spec: ModelSpec) -> ModelSpec:
        """The entry with the folder and files that it has on this computer."""
        if not spec.is_hub:
            return spec
        return spec.model_copy(update={"folder": self.folder(spec), "files": self.files(spec)})

    def state(self, spec: ModelSpec) -> State:
        """`complete` when every file is there with the right size."""
        files, folder = self.files(spec), self.folder(spec)
        here = [_is_whole(folder / file.path, file) for file in files]
        if all(here) and self.knows_all(spec):
            return "complete"
        return "partial" if any(here) or any((folder / (file.path + PART)).exists() for file in files) else "absent"

    def knows_all(self, spec: ModelSpec) -> bool:
        """Whether it is settled which files the model has; where patterns choose them, the hub has to say."""
        return not (spec.is_hub and spec.source and spec.source.include) or self.entry(spec) is not None

    def missing(self, spec: ModelSpec) -> list[str]:
        """Files that are not there, or have the wrong size."""
        folder = self.folder(spec)
        return [file.path for file in self.files(spec) if not _is_whole(folder / file.path, file)]

    def size_bytes(self, spec: ModelSpec) -> int | None:
        """Size of all files together, or None where one is unknown."""
        sizes = [file.size for file in self.files(spec)]
        known = sizes and None not in sizes and self.knows_all(spec)
        return sum(size or 0 for size in sizes) if known else None

    @contextmanager
    def exclusive(
        self, model_id: str, cancel: threading.Event | None = None, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Only one at a time changes a model's files, over all processes. Raises CacheReadOnlyError."""
        from filelock import FileLock, Timeout

        with writing(self.root, model_id):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".locks" / f"{model_id}.lock", timeout=0)
        while True:
            try:
                with writing(self.root, model_id):
                    lock.acquire()
                break
            except Timeout:
                if waiting:
                    waiting()
                    waiting = None
                if (cancel or threading.Event()).wait(_POLL_S):
                    raise DownloadCancelledError(
                        f"model {model_id!r}: cancelled while another download of it"
                    ) from None
        try:
            yield
        finally:
            lock.release()

    def made_folder(self, model_id: str) -> Path:
        """Where `models optimise` keeps what it made under this id: one folder for each content."""
        return self.root.parent / "optimised" / model_id

    def made_entry(self, model_id: str) -> Path:
        """The TOML that makes it known, in the user's own catalogue."""
        return self.lockfile.path.parent / "catalogue" / f"{model_id}.toml"

    def remove(self, spec: ModelSpec) -> int:
        """Delete the weights; the lock remembers them. Returns the bytes freed. Raises SidecarError.

        What `models optimise` made goes with its entry: it can only be made again.
        """
        self.check_removable(spec)
        if spec.made_from is not None:
            with self.exclusive(f"{spec.id}.made"), writing(self.made_entry(spec.id), spec.id):
                self.made_entry(spec.id).unlink(missing_ok=True)
                return _delete(self.made_folder(spec.id))
        with self.exclusive(spec.id):
            return _delete(self.root / spec.id)

    def check_removable(self, spec: ModelSpec) -> None:
        """Raises BadRequestError for a model whose files we have not put there."""
        if spec.made_from is None and not spec.is_hub:
            raise BadRequestError(
                f"model {spec.id!r} was not downloaded, so that it cannot be deleted; its files are in {spec.folder}"
            )

    def verify(self, spec: ModelSpec, progress: Callable[[str, int], None] | None = None) -> list[str]:
        """Read every file; returns what is wrong, one line each. Files with wrong content are deleted."""
        faults, folder = [], self.folder(spec)
        # What we have not put there we do not change either.
        with self.exclusive(spec.id) if spec.is_hub else nullcontext():
            for file in self.files(spec):
                path = folder / file.path
                if not path.is_file():
                    faults.append(f"{file.path}: missing")
                    continue
                found = sha256_of(path, partial(progress, file.path) if progress else None)
                if (file.sha256 and found != file.sha256) or not _is_whole(path, file):
                    faults.append(f"{file.path}: its content has changed (sha256 {found[:12]}…)")
                    if spec.is_hub:
                        path.unlink()
        return faults

    def collect(self, specs: Iterable[ModelSpec], unclear: Collection[str | None] = ()) -> Garbage:
        """Delete revisions that neither catalogue nor lock name, and parts that no download will go on with.

        Nothing is deleted of models whose entry has no place set, or cannot be read now: their ids are `unclear`, and
        None among them says that a whole folder of entries is out of reach.
        """
        specs = list(specs)
        known = {spec.id: spec for spec in specs if spec.is_hub}
        kept = {".locks", *unclear, *(spec.id for spec in specs if spec.source and spec.source.setting)}
        clear = [path for path in self._folders() if path.name in known or None not in unclear]
        paths: list[Path] = []
        freed = 0
        for folder in sorted(path for path in clear if path.name not in kept):
            try:
                with self.exclusive(folder.name, _already_set()):
                    for path in self._garbage(folder, known.get(folder.name)):
                        freed += _delete(path)
                        paths.append(path)
            except SidecarError:  # being downloaded now, or read-only: next time
                continue
        return Garbage(paths, freed)

    def _folders(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []

    def _garbage(self, folder: Path, spec: ModelSpec | None) -> list[Path]:
        if spec is None or self.revision(spec) is None:
            return [folder]
        keep = self.folder(spec)
        wanted = {keep / (file.path + PART) for file in self.files(spec) if not (keep / file.path).is_file()}
        old = [path for path in folder.iterdir() if path != keep]
        parts = [path for path in keep.rglob("*" + PART) if path not in wanted or _age_s(path) > _PART_KEPT_S]
        return sorted([*old, *parts])


def _merged(file: ModelFile, known: ModelFile | None) -> ModelFile:
    """What the catalogue says goes first: a lock cannot loosen it."""
    if known is None:
        return file
    return file.model_copy(
        update={
            "size": known.size if file.size is None else file.size,
            "sha256": file.sha256 or known.sha256,
        }
    )


def _is_whole(path: Path, file: ModelFile) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return path.is_file() and (file.size is None or stat.st_size == file.size)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _already_set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def _delete(path: Path) -> int:
    """Rename first, so that nobody takes a half-deleted folder for a whole one. Returns the bytes freed."""
    if not path.exists():
        return 0
    doomed = path.with_name(f".{path.name}.deleted")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    with writing(path.parent, path.name):
        if doomed.is_dir():
            shutil.rmtree(doomed)
        os.replace(path, doomed)
        if doomed.is_dir():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
    return size


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 in hex; `progress` is told the bytes of each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


@contextmanager
def writing(folder: Path, model_id: str) -> Iterator[None]:
    """Turn what the file system refuses into an error that names model, folder and cure."""
    try:
        yield
    except TimeoutError:  # filelock's, an OSError of its own
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, model_id) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise CacheReadOnlyError(
                f"model {model_id!r}: the cache folder {folder} cannot be written ({error.strerror}); make it "
                "writable, or point SIDECAR_HOME to a folder that is"
            ) from None
        raise DownloadError(f"model {model_id!r}: {folder}: {error.strerror or error}") from error


def check_room(folder: Path, model_id: str, needed: int) -> None:
    """Raises DiskFullError unless the folder's volume has these bytes, and some to spare."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and needed + _SPARE_BYTES > free:
        figures = f"{needed / 1e6:,.0f} MB more and {_SPARE_BYTES / 1e6:,.0f} MB to spare, {free / 1e6:,.0f} MB free"
        raise disk_full(folder, model_id, f": needs {figures}")


def disk_full(folder: Path, model_id: str, figures: str = "") -> DiskFullError:
    """The error, with the figures where they are known."""
    return DiskFullError(
        f"model {model_id!r}: no room on the volume of {folder}{figures}; free some space there (`models rm ID` "
        "deletes weights), or point SIDECAR_HOME to a larger volume. What has arrived is kept"
    )
