"""Catalogue: one TOML per model, read into ModelSpec. Built-in entries first, then the user's own folders."""

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.lockfile import Consent
from sidecar.catalogue.place import settled, unanswered
from sidecar.catalogue.profiles import Profiles, cure
from sidecar.catalogue.spec import (
    ADAPTED,
    INTERNAL,
    BatchLimits,
    Head,
    ModelFile,
    ModelSpec,
    Source,
)
from sidecar.errors import ConfigError, ModelNotFoundError, ModelUnavailableError, ModelUnsupportedError
from sidecar.settings import ROOT, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BUILT_IN", "BatchLimits", "Catalogue", "Head", "ModelFile", "ModelSpec", "Obstacle", "Source", "read_spec"]

BUILT_IN = ROOT / "models" / "catalogue"


_NO_RUNTIME = "there is no runtime for it in this version ({})"


class Obstacle(NamedTuple):
    """Why a model cannot answer now, and what to do about it ("" where nothing can be done)."""

    kind: Literal["runtime", "profile", "files"]
    reason: str
    cure: str


class Fault(NamedTuple):
    """What is wrong with an entry, or with the folders of entries."""

    reason: str
    """Names the file, and what to do."""
    file: Path | None = None
    id: str | None = None
    """Of the entry, as far as it can be told."""


def read_spec(path: Path) -> ModelSpec:
    """One TOML file. Raises ConfigError naming file and field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        _place(values, path.parent)
        spec = ModelSpec.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"catalogue file {path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()
        )
        raise ConfigError(f"catalogue file {path}: {faults}") from None
    if not INTERNAL.isdisjoint(spec.capabilities):
        raise ConfigError(f"catalogue file {path}: capabilities: {' and '.join(spec.capabilities)} is no model's")
    return spec


@cache
def _read_once(path: Path, mtime_ns: int, size_bytes: int) -> ModelSpec:
    """`read_spec` of an entry that nothing but its own text decides about."""
    return read_spec(path)


def _read_built_in(path: Path) -> ModelSpec:
    # To parse and validate them all takes 10 ms, at each refresh, on the server's loop.
    try:
        at = path.stat()
    except OSError:
        return read_spec(path)  # which says what is wrong
    return _read_once(path, at.st_mtime_ns, at.st_size)


def _claimed_id(path: Path) -> str:
    """The id of an entry that is not valid; that of a file which cannot be read at all is its name."""
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError):
        return path.stem


def _place(values: dict[str, Any], beside: Path) -> None:
    """Turn `folder` and `source.path` into the folder on this computer; a hub model has its place in the cache."""
    source = values.get("source")
    source = source if isinstance(source, dict) else {}
    own = source.get("path")
    if isinstance(own, str):
        place = (beside / Path(own).expanduser()).resolve()
        if place.is_file():
            values.setdefault("files", [{"path": place.name}])
            place = place.parent
        values["folder"] = place
    elif "folder" in values or not source.keys() & {"repo", "s3", "setting"}:
        values["folder"] = (beside / str(values.get("folder", "."))).resolve()


class Catalogue:
    """All known models by id. The first folder is ours; an entry of the others, the user's, replaces one of ours.

    `runtimes` are those with an adapter; `profiles` tells which environments are installed, and is asked again at
    every `refresh`; `missing` says why one is not, `known` which there are (None: any); `places` are the settings that
    say where models of the user's own are. Without a cache no hub model is ever usable. A file that cannot be obeyed is
    left out and named in `faults`: one typing error must not silence every other model.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        cache: ModelCache | None = None,
        *,
        runtimes: Collection[str] = ADAPTED,
        profiles: Callable[[], Collection[str]] = lambda: ("base",),
        missing: Callable[[str], str] = lambda name: f"the profile {name!r} is not installed",
        known: Callable[[], Collection[str]] | None = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._folders = tuple(folders)
        self._places = places or {}
        self._asked: tuple[Path, ...] = ()
        self._faults: list[Fault] = []
        self.cache = cache
        self._runtimes = frozenset(runtimes)
        self._ask_profiles = profiles
        self._why_missing = missing
        self._ask_known = known
        self._profiles: frozenset[str] = frozenset()
        self._specs: dict[str, ModelSpec] | None = None
        self._ranked: dict[str, list[ModelSpec]] = {}

    @classmethod
    def of(cls, settings: Settings, profiles: Profiles | None = None) -> "Catalogue":
        """The built-in entries, those of the user's data folder, then those of SIDECAR_CATALOGUE."""
        own = [settings.catalogue_dir] if settings.catalogue_dir else []
        folders = [BUILT_IN, settings.data_dir / "catalogue", *own]
        profiles = profiles or Profiles.of(settings)
        catalogue = cls(
            folders,
            ModelCache.of(settings),
            profiles=profiles.installed,
            missing=profiles.reason,
            known=profiles.names,
            places={"SIDECAR_BACKCHANNEL_MODEL": settings.backchannel_place},
        )
        catalogue._asked = tuple(own)
        return catalogue

    @property
    def profiles(self) -> frozenset[str]:
        """The environments that were installed at the last `refresh`."""
        return self._profiles

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """All entries; a hub model's with the folder that it has in the cache."""
        if self._specs is None:
            self.refresh()
        assert self._specs is not None
        return self._specs

    def refresh(self) -> None:
        """Look again: a download, a profile or a TOML may have come."""
        absent = [folder for folder in self._asked if not folder.is_dir()]
        faults = [Fault(f"catalogue folder {folder} does not exist", folder) for folder in absent]
        known = self._ask_known() if self._ask_known else None
        specs: dict[str, ModelSpec] = {}
        for number, folders in enumerate((self._folders[:1], self._folders[1:])):
            specs |= self._read(folders, read_spec if number else _read_built_in, known if number else None, faults)
        self._faults = faults
        if self.cache is not None:
            specs = {name: self.cache.placed(spec) for name, spec in specs.items()}
        # Assigned whole, in this order: other threads read them without a lock.
        self._profiles = frozenset(self._ask_profiles())
        self._specs = specs
        self._ranked = {}

    def _read(
        self,
        folders: Iterable[Path],
        read: Callable[[Path], ModelSpec],
        profiles: Collection[str] | None,
        faults: list[Fault],
    ) -> dict[str, ModelSpec]:
        """The entries of folders that may not contradict each other."""
        specs: dict[str, ModelSpec] = {}
        origins: dict[str, Path] = {}
        for path in dict.fromkeys(path for folder in folders for path in sorted(folder.resolve().glob("*.toml"))):
            try:
                spec = settled(read(path), self._places)
                if profiles is not None and spec.profile not in profiles:
                    there = ", ".join(sorted(profiles))
                    raise ConfigError(f"catalogue file {path}: profile: {spec.profile!r} is none of {there}")
            except ConfigError as error:
                faults.append(Fault(error.message, path, _claimed_id(path)))
                continue
            first = origins.setdefault(spec.id, path)
            # A copy that somebody begins an entry with must not take the place of the one that is in use.
            taken = path if first.stem != spec.id == path.stem else first
            if first is not path:
                other = first if taken is path else path
                told = f"catalogue file {other}: id: {spec.id!r} is that of {taken}, too, which is taken; change one"
                faults.append(Fault(told, other, spec.id))
            if taken is path:
                specs[spec.id], origins[spec.id] = spec, path
        return specs

    @property
    def faults(self) -> list[Fault]:
        """Entries that were left out at the last `refresh`."""
        if self._specs is None:
            self.refresh()
        return self._faults

    def fingerprint(self) -> tuple[tuple[str, int], ...]:
        """Changes when an entry of the user's own or a model's weights come, go or are rewritten, by whomever."""
        paths = [path for folder in self._folders[1:] for path in folder.glob("*.toml")]
        # A folder changes with the names in it.
        named = [Path(place).expanduser() for place in self._places.values() if place]
        paths += [*named, *(folder / "onnx" for folder in named)]
        found = []
        for path in [*paths, *([self.cache.lockfile.path] if self.cache else [])]:
            with contextlib.suppress(OSError):  # removed in this very moment
                found.append((str(path), path.stat().st_mtime_ns))
        weights = [(spec.id, 0) for spec in self.specs.values() if self._is_here(spec)]
        return tuple(sorted([*found, *weights]))

    def _is_here(self, spec: ModelSpec) -> bool:
        return spec.is_hub and self.cache is not None and self.cache.state(spec) == "complete"

    def get(self, model_id: str) -> ModelSpec:
        """Raises ModelNotFoundError."""
        try:
            return self.specs[model_id]
        except KeyError:
            if told := "; ".join(fault.reason for fault in self.faults if fault.id == model_id):
                raise ModelNotFoundError(f"no model {model_id!r} in the catalogue: {told}") from None
            known = ", ".join(sorted(self.specs))
            raise ModelNotFoundError(f"no model {model_id[:64]!r} in the catalogue; known: {known}") from None

    def usable(self, model_id: str) -> ModelSpec:
        """The entry, if it can answer. Raises ModelNotFoundError, ModelUnsupportedError, ModelUnavailableError."""
        spec = self.get(model_id)
        if obstacles := self.obstacles(spec):
            self.check_supported(spec)
            told = "; ".join(f"{each.reason}{f' (cure: {each.cure})' if each.cure else ''}" for each in obstacles)
            raise ModelUnavailableError(f"model {model_id!r} cannot answer: {told}")
        return spec

    def check_supported(self, spec: ModelSpec) -> None:
        """Raises ModelUnsupportedError for a model that nothing on this computer could make answer."""
        if not self.is_supported(spec):
            raise ModelUnsupportedError(f"model {spec.id!r} cannot answer: {_NO_RUNTIME.format(spec.runtime)}")

    def is_supported(self, spec: ModelSpec) -> bool:
        """Whether there is an adapter for its runtime."""
        return spec.runtime in self._runtimes

    def for_capability(self, capability: str) -> list[ModelSpec]:
        """Usable entries that offer `capability`, best first; looked up once, not per request."""
        if self._specs is None:
            self.refresh()
        ranked = self._ranked  # a refresh in another thread makes a new one
        if capability not in ranked:
            usable = [spec for spec in self.ranking(capability) if not self.obstacles(spec)]
            ranked[capability] = usable
        return ranked[capability]

    def ranking(self, capability: str) -> list[ModelSpec]:
        """All entries that offer `capability`, best first, usable or not."""
        able = [spec for spec in self.specs.values() if capability in spec.capabilities]
        return sorted(able, key=lambda spec: (-spec.preference, spec.id))

    def obstacles(self, spec: ModelSpec) -> list[Obstacle]:
        """What keeps the model from answering; nothing if it can."""
        if not self.is_supported(spec):
            # Whatever else is missing: to bring it here would be in vain.
            return [Obstacle("runtime", _NO_RUNTIME.format(spec.runtime), "")]
        found = []
        if spec.profile not in self._profiles:
            found.append(self._no_profile(spec.profile))
        if obstacle := self._missing(spec):
            found.append(obstacle)
        return found

    def unanswered_places(self) -> list[str]:
        """Settings with a folder from which no model can answer: whoever set one counts on it."""
        lines = []
        for setting, place in self._places.items():
            folder = Path(place).expanduser().resolve()
            there = [spec for spec in self.specs.values() if place and spec.source and spec.source.path == folder]
            reasons = {spec.id: [each.reason for each in self.obstacles(spec)] for spec in there}
            if reasons and all(reasons.values()):
                lines.append(f"{setting}={place}: {unanswered(place, reasons)}")
        return lines

    def _no_profile(self, name: str) -> Obstacle:
        if self._ask_known and name not in self._ask_known():
            return Obstacle("profile", f"there is no profile {name!r}", "")
        return Obstacle("profile", self._why_missing(name), cure(name))

    def _missing(self, spec: ModelSpec) -> Obstacle | None:
        if spec.source and spec.source.setting:
            cure = f"set {spec.source.setting} to a folder, a hub id or s3://bucket/prefix"
            return Obstacle("files", f"{spec.source.setting} does not say where it is", cure)
        if not spec.is_hub:
            missing = spec.missing_files()
            gone = f"{spec.folder} lacks {', '.join(missing)}"
            cure = f"python3 launcher.py models optimise {spec.made_from}" if spec.made_from else "put the files there"
            return Obstacle("files", gone, cure) if missing else None
        state = self.cache.state(spec) if self.cache else "absent"
        consent = self.cache.consent(spec.id) if self.cache else Consent()
        asked = [file.path for file in spec.files if file.pickle and file.path not in consent.pickles]
        if state == "complete" and not asked:
            return None
        words = " --accept-licence" if spec.opt_in and not consent.licence else ""
        words += "".join(f" --allow-pickle {path}" for path in asked)
        if state == "complete":
            cure = f"python3 launcher.py models pull {spec.id}{words}"
            return Obstacle("files", f"nobody allowed its pickle {', '.join(asked)}", cure)
        reason = "its files are not downloaded" if state == "absent" else "its download is not finished"
        return Obstacle("files", reason, f"python3 launcher.py models pull {spec.id}{words}")
