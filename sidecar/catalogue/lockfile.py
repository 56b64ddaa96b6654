"""`models.lock.json`: which commit and which bytes a model was downloaded as, and what the user agreed to.

A revision or hash that the catalogue does not know is trusted on first use: it is written here, and from then on the
download has to be the same.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidecar.catalogue.spec import ModelFile, ModelSpec
from sidecar.errors import CacheReadOnlyError, ConfigError, DownloadError

_WAIT_S = 10.0


class Entry(BaseModel):
    """One downloaded or imported model."""

    model_config = ConfigDict(frozen=True)

    repo: str
    ref: str | None = Field(None, description="what was asked for: a commit, branch or tag, or None for `main`")
    revision: str = Field(pattern=r"^([0-9a-f]{40}|imported)$")
    files: tuple[ModelFile, ...]
    resolved_at: float = Field(default_factory=time.time, description="Unix epoch (s)")


class Consent(BaseModel):
    """What the user agreed to for one model."""

    model_config = ConfigDict(frozen=True)

    licence: bool = False
    pickles: tuple[str, ...] = ()


class Locked(BaseModel):
    """The whole file."""

    schema_version: int = Field(1, alias="schema")
    models: dict[str, Entry] = {}
    consents: dict[str, Consent] = {}


class Lockfile:
    """The file, read anew when it changes; written whole, under a lock that all processes respect."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._locked = Locked()

    def read(self) -> Locked:
        """What is in it; nothing if it does not exist. Raises ConfigError when it is damaged."""
        with self._mutex:
            try:
                stat = self.path.stat()
                mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if mark != self._seen:
                    self._locked = Locked.model_validate_json(self.path.read_bytes())
                    self._seen = mark
            except FileNotFoundError:
                self._locked, self._seen = Locked(), None
            except (OSError, ValidationError) as error:
                raise ConfigError(
                    f"{self.path} is damaged or unreadable ({str(error).splitlines()[0]}); restore it, or delete it to "
                    "trust the next downloads anew"
                ) from None
            return self._locked

    def entry(self, spec: ModelSpec) -> Entry | None:
        """The model's entry, if it is of the source that the catalogue names now."""
        entry = self.read().models.get(spec.id)
        if entry is None or spec.source is None or entry.repo != spec.source.origin:
            return None
        return entry if entry.ref == spec.source.revision else None

    def consent(self, model_id: str) -> Consent:
        """What the user agreed to for this model."""
        return self.read().consents.get(model_id, Consent())

    def record(self, model_id: str, entry: Entry) -> None:
        """Write what a download turned out to be. Raises CacheReadOnlyError."""
        self._update(lambda locked: locked.models.__setitem__(model_id, entry))

    def forget(self, model_id: str) -> None:
        """Trust the next download anew."""
        self._update(lambda locked: locked.models.pop(model_id, None))

    def agree(self, model_id: str, *, licence: bool = False, pickles: tuple[str, ...] = ()) -> None:
        """Add to what the user agreed to."""

        def change(locked: Locked) -> None:
            old = locked.consents.get(model_id, Consent())
            both = tuple(sorted({*old.pickles, *pickles}))
            locked.consents[model_id] = Consent(licence=old.licence or licence, pickles=both)

        self._update(change)

    def _update(self, change: Callable[[Locked], object]) -> None:
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=_WAIT_S):
                locked = self.read().model_copy(deep=True)
                change(locked)
                self._write(locked)
        except Timeout:
            raise DownloadError(f"{self.path} has been held by another process for {_WAIT_S:g} s; try again") from None
        except OSError as error:
            raise CacheReadOnlyError(
                f"cannot write {self.path}: {error.strerror}; make the folder writable, or point SIDECAR_HOME to one "
                "that is"
            ) from None

    def _write(self, locked: Locked) -> None:
        text = json.dumps(locked.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True) + "\n"
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
