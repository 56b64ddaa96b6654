"""Catalogue: one TOML per model, read into ModelSpec. Built-in entries first, then the user's own folders."""

import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.lockfile import Consent
from sidecar.catalogue.spec import (
    ADAPTED,
    BatchLimits,
    Head,
    ModelFile,
    ModelSpec,
    Source,
)
from sidecar.errors import ConfigError, ModelNotFoundError, ModelUnavailableError
from sidecar.settings import ROOT, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BUILT_IN", "BatchLimits", "Catalogue", "Head", "ModelFile", "ModelSpec", "Obstacle", "Source", "read_spec"]

BUILT_IN = ROOT / "models" / "catalogue"


class Obstacle(NamedTuple):
    """Why a model cannot answer now, and what to do about it ("" where nothing can be done)."""

    kind: Literal["runtime", "profile", "files"]
    reason: str
    cure: str


def read_spec(path: Path) -> ModelSpec:
    """One TOML file. Raises ConfigError naming file and field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        _place(values, path.parent)
        return ModelSpec.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"catalogue file {path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"catalogue file {path}: {faults}") from None


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
    elif "folder" in values or "repo" not in source:
        values["folder"] = (beside / str(values.get("folder", "."))).resolve()


class Catalogue:
    """All known models by id; an entry of a later folder replaces one of the same id.

    `runtimes` are those with an adapter; `profiles` tells which environments are installed, and is asked again at
    every `refresh`. Without a cache no hub model is ever usable. A file that cannot be read is left out and named in
    `faults`: one typing error must not silence every other model.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        cache: ModelCache | None = None,
        *,
        runtimes: Collection[str] = ADAPTED,
        profiles: Callable[[], Collection[str]] = lambda: ("base",),
    ) -> None:
        self._folders = tuple(folders)
        self._asked: tuple[Path, ...] = ()
        self.faults: list[str] = []
        self.cache = cache
        self._runtimes = frozenset(runtimes)
        self._ask_profiles = profiles
        self._profiles: frozenset[str] = frozenset()
        self._specs: dict[str, ModelSpec] | None = None
        self._ranked: dict[str, list[ModelSpec]] = {}

    @classmethod
    def of(cls, settings: Settings, profiles: Callable[[], Collection[str]] | None = None) -> "Catalogue":
        """The built-in entries, those of the user's data folder, then those of SIDECAR_CATALOGUE."""
        own = [settings.catalogue_dir] if settings.catalogue_dir else []
        folders = [BUILT_IN, settings.data_dir / "catalogue", *own]
        catalogue = cls(folders, ModelCache.of(settings), profiles=profiles or (lambda: installed_profiles(settings)))
        catalogue._asked = tuple(own)
        return catalogue

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """All entries; a hub model's with the folder that it has in the cache."""
        if self._specs is None:
            self.refresh()
        assert self._specs is not None
        return self._specs

    def refresh(self) -> None:
        """Look again: a download, a profile or a TOML may have come."""
        specs: dict[str, ModelSpec] = {}
        faults = [f"catalogue folder {folder} does not exist" for folder in self._asked if not folder.is_dir()]
        for path in (path for folder in self._folders for path in sorted(folder.glob("*.toml"))):
            try:
                spec = read_spec(path)
            except ConfigError as error:
                faults.append(error.message)
            else:
                specs[spec.id] = spec
        self.faults = faults
        if self.cache is not None:
            specs = {name: self.cache.placed(spec) for name, spec in specs.items()}
        # Assigned whole, in this order: other threads read them without a lock.
        self._profiles = frozenset(self._ask_profiles())
        self._specs = specs
        self._ranked = {}

    def get(self, model_id: str) -> ModelSpec:
        """Raises ModelNotFoundError."""
        try:
            return self.specs[model_id]
        except KeyError:
            known = ", ".join(sorted(self.specs))
            raise ModelNotFoundError(f"no model {model_id!r} in the catalogue; known: {known}") from None

    def usable(self, model_id: str) -> ModelSpec:
        """The entry, if it can answer. Raises ModelNotFoundError, or ModelUnavailableError with the cure."""
        spec = self.get(model_id)
        if obstacles := self.obstacles(spec):
            told = "; ".join(f"{each.reason}{f' (cure: {each.cure})' if each.cure else ''}" for each in obstacles)
            raise ModelUnavailableError(f"model {model_id!r} cannot answer: {told}")
        return spec

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
        found = []
        if spec.runtime not in self._runtimes:
            found.append(Obstacle("runtime", f"this version has no adapter for {spec.runtime}", ""))
        if spec.profile not in self._profiles:
            cure = f"python launcher.py install --with {spec.profile}"
            found.append(Obstacle("profile", f"its profile {spec.profile!r} is not installed", cure))
        if obstacle := self._missing(spec):
            found.append(obstacle)
        return found

    def _missing(self, spec: ModelSpec) -> Obstacle | None:
        if not spec.is_hub:
            missing = spec.missing_files()
            gone = f"{spec.folder} lacks {', '.join(missing)}"
            return Obstacle("files", gone, "put the files there") if missing else None
        state = self.cache.state(spec) if self.cache else "absent"
        if state == "complete":
            return None
        consent = self.cache.consent(spec.id) if self.cache else Consent()
        words = " --accept-licence" if spec.opt_in and not consent.licence else ""
        asked = [file.path for file in spec.files if file.pickle and file.path not in consent.pickles]
        words += "".join(f" --allow-pickle {path}" for path in asked)
        reason = "its files are not downloaded" if state == "absent" else "its download is not finished"
        return Obstacle("files", reason, f"python -m sidecar models pull {spec.id}{words}")


def installed_profiles(settings: Settings) -> set[str]:
    """Profiles with a finished environment; base is the one that we run in."""
    finished = (settings.data_dir / "env").glob("*/complete.json")
    return {"base", *(path.parent.name.rpartition("-")[0] for path in finished)}
