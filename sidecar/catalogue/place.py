"""Models of the user's own whose place a setting names: a folder, a hub id, or a prefix of an S3 bucket."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ConfigError

_NO_PLACE = (
    "setting {}={!r} is no folder, hub id or s3://bucket/prefix (which S3_BUCKET_NAME and S3_MODEL_PREFIX make; a "
    "bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens)"
)
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)


def settled(spec: ModelSpec, places: Mapping[str, str]) -> ModelSpec:
    """The entry with the source that its setting names; unchanged where it has no setting, or that is empty.

    Raises ConfigError for a value that is no place, or one that the entry cannot have.
    """
    setting = spec.source.setting if spec.source else None
    place = places.get(setting, "") if setting else ""
    if not setting or not place or spec.source is None:
        return spec
    values = spec.model_dump(exclude={"source", "folder", "files"}) | {"files": spec.files}
    include = spec.source.include
    folder = Path(place).expanduser()
    if place.startswith("s3://"):
        values["source"] = {"s3": place.rstrip("/"), "include": include}
    elif folder.is_absolute() or folder.is_dir() or place.startswith("."):
        values |= _in_folder(spec, folder.resolve(), include)
    elif _REPO.fullmatch(place):
        repo, _, revision = place.partition("@")
        values["source"] = {"repo": repo, "revision": revision or None, "include": include}
    else:
        raise ConfigError(_NO_PLACE.format(setting, place))
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        if error.errors()[0]["type"] == "string_pattern_mismatch":
            raise ConfigError(_NO_PLACE.format(setting, place)) from None
        raise ConfigError(f"setting {setting}={place!r}: model {spec.id!r}: {error.errors()[0]['msg']}") from None


def unanswered(place: str, models: Mapping[str, list[str]]) -> str:
    """Why none of these models, each with what is in its way, answers from a folder that the user has named."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return f"there is no folder {folder}"
    each = "; ".join(f"{model}: {', '.join(reasons)}" for model, reasons in models.items())
    return f"no model there can answer ({each})"


def _in_folder(spec: ModelSpec, folder: Path, include: tuple[str, ...]) -> dict[str, Any]:
    """Files that the patterns name are looked for here; where there is none, the first pattern says what is missing."""
    here = {path.relative_to(folder).as_posix() for one in include for path in folder.glob(one) if path.is_file()}
    chosen = sorted(here - {file.path for file in spec.files})
    wanted = [{"path": path} for path in chosen or include[:1]]
    return {"source": {"path": folder}, "folder": folder, "files": [*spec.files, *wanted]}
