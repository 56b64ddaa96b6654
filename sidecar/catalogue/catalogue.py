"""Catalogue: one TOML per model, read into ModelSpec. Built-in entries first, then the user's own folder."""

import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidecar.errors import ConfigError, ModelNotFoundError
from sidecar.settings import ROOT, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = ROOT / "models" / "catalogue"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFile(_Strict):
    """A file of the model, relative to its folder; size in bytes, sha256 in hex."""

    path: str
    size: int | None = None
    sha256: str | None = None


class Head(_Strict):
    """One classification head: the graph's output and its labels in logit order."""

    output: str
    labels: tuple[str, ...]
    inputs: dict[str, bool] = Field({}, description="switches of the graph, such as branches this head does not need")


class BatchLimits(_Strict):
    """How much one batch may hold, and how long it may take."""

    max_items: int = Field(32, ge=1)
    max_padded_tokens: int = Field(2048, ge=1, description="items × longest item, in tokens")
    max_padding: float = Field(1.0, ge=0, le=1, description="share of the padded tokens that may be padding")
    timeout_s: float = Field(30.0, gt=0, description="silence after which a running batch counts as hung (s)")


class ModelSpec(_Strict):
    """One catalogue entry."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    title: str
    capabilities: tuple[str, ...] = Field(min_length=1)
    runtime: Literal["onnx", "fake"]
    licence: str
    profile: str = "base"
    preference: int = Field(0, description="the usable model with the highest one answers")
    memory_mb: int = Field(0, ge=0, description="estimate of the runner's resident memory (MiB)")
    memory_limit_mb: int = Field(0, ge=0, description="RSS at which its runner is ended (MiB); 0 takes the setting")
    folder: Path = Field(description="where the files lie, relative to the TOML")
    files: tuple[ModelFile, ...] = ()
    threads: int = Field(
        0, ge=0, description="threads of one batch; the other cores compute further batches beside it. 0: all on one"
    )
    window: int = Field(512, ge=8, description="longest input (tokens); longer ones are truncated")
    heads: dict[str, Head] = {}
    batch: BatchLimits = BatchLimits()
    options: dict[str, Any] = Field({}, description="for the runtime's adapter alone")

    def missing_files(self) -> list[str]:
        """Files of the entry that are not on disk."""
        return [file.path for file in self.files if not (self.folder / file.path).is_file()]


def read_spec(path: Path) -> ModelSpec:
    """One TOML file. Raises ConfigError naming file and field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        values["folder"] = (path.parent / values.get("folder", ".")).resolve()
        return ModelSpec.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"catalogue file {path}: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"catalogue file {path}: {faults}") from None


class Catalogue:
    """All known models by id; an entry of the user's folder replaces a built-in one of the same id.

    A file that cannot be read is left out and named in `faults`: one typing error must not silence every other model.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._ranked: dict[str, list[ModelSpec]] = {}
        self.faults: list[str] = []

    @classmethod
    def of(cls, settings: Settings) -> "Catalogue":
        """The built-in entries and, where set, the user's."""
        return cls([BUILT_IN, *([settings.catalogue_dir] if settings.catalogue_dir else [])])

    @cached_property
    def specs(self) -> dict[str, ModelSpec]:
        found: dict[str, ModelSpec] = {}
        for folder in self._folders:
            if not folder.is_dir():
                self.faults.append(f"catalogue folder {folder} does not exist")
            for path in sorted(folder.glob("*.toml")):
                try:
                    spec = read_spec(path)
                except ConfigError as error:
                    self.faults.append(error.message)
                else:
                    found[spec.id] = spec
        return found

    def get(self, model_id: str) -> ModelSpec:
        """Raises ModelNotFoundError."""
        try:
            return self.specs[model_id]
        except KeyError:
            known = ", ".join(sorted(self.specs))
            raise ModelNotFoundError(f"no model {model_id!r} in the catalogue; known: {known}") from None

    def for_capability(self, capability: str) -> list[ModelSpec]:
        """Entries that offer `capability` and have their files, best first; looked up once, not per request."""
        if capability not in self._ranked:
            able = [spec for spec in self.specs.values() if capability in spec.capabilities]
            usable = [spec for spec in able if not spec.missing_files()]
            self._ranked[capability] = sorted(usable, key=lambda spec: (-spec.preference, spec.id))
        return self._ranked[capability]
