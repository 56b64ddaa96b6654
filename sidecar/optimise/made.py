"""What was made, on the disk: a folder in the cache named after its content, and the entry that makes it known.

The entry is written last and replaced whole: what was interrupted before is never used, and the next run removes it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sidecar.catalogue.cache import ModelCache, sha256_of, writing
from sidecar.catalogue.spec import Head, ModelSpec

PART = ".part"
GRAPH = "model.onnx"
KINDS = ("int8", "onnx")
_LONGEST_ID = 64
_MORE_MB = 120  # of a runner beside its weights
_HASH_DIGITS = 12


def made_id(spec: ModelSpec, kind: str) -> str:
    """`<id>-int8` or `<id>-onnx`."""
    return f"{spec.id[: _LONGEST_ID - len(kind) - 1]}-{kind}"


def work_folder(cache: ModelCache, spec: ModelSpec) -> Path:
    """An empty folder for candidates, what an interrupted run left in it removed. Raises SidecarError."""
    folder = cache.made_folder(f".{spec.id}{PART}")
    with writing(folder, spec.id):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def keep(cache: ModelCache, spec: ModelSpec, kind: str, candidate: Path, window: int) -> ModelSpec:
    """Make `candidate` a model of the catalogue. Replaces what an earlier run made. Raises SidecarError."""
    model_id = made_id(spec, kind)
    home = cache.made_folder(model_id)
    with cache.exclusive(f"{model_id}.made"), writing(home, model_id):
        digest = sha256_of(candidate / GRAPH)
        folder = home / digest[:_HASH_DIGITS]
        files = [_file(candidate, path) for path in sorted(candidate.iterdir())]
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(candidate, folder)
        entry = cache.made_entry(model_id)
        _write(entry, entry_text(spec, kind, folder, files, window))
        for other in home.iterdir():
            if other != folder:  # of an earlier run; a system that has it open keeps it till the next one
                shutil.rmtree(other, ignore_errors=True)
    for other_kind in KINDS:
        if other_kind != kind:
            forget(cache, made_id(spec, other_kind))
    from sidecar.catalogue.catalogue import read_spec

    return read_spec(entry)


def forget(cache: ModelCache, model_id: str) -> None:
    """Remove what an earlier run made under this id, if it made something."""
    with cache.exclusive(f"{model_id}.made"), writing(cache.made_folder(model_id), model_id):
        if cache.made_folder(model_id).exists():
            cache.made_entry(model_id).unlink(missing_ok=True)
            shutil.rmtree(cache.made_folder(model_id), ignore_errors=True)


def entry_text(spec: ModelSpec, kind: str, folder: Path, files: list[dict[str, Any]], window: int) -> str:
    """The TOML: the original's capabilities, labels, templates and batch limits on the ONNX runtime."""
    size_mb = sum(file["size"] for file in files) / 1e6
    heads = {name: head.model_copy(update={"output": "logits"}) for name, head in spec.heads.items()}
    values: dict[str, Any] = {
        "id": made_id(spec, kind),
        "title": f"{spec.title}, {'int8 ' if kind == 'int8' else ''}ONNX made on this computer",
        "capabilities": list(spec.capabilities),
        "runtime": "onnx",
        "licence": spec.licence,
        "preference": spec.preference + 1,
        "languages": list(spec.languages),
        "memory_mb": round(1.5 * size_mb + _MORE_MB),
        "made_from": spec.id,
        "window": window,
        "device": "cpu",
        "files": files,
        "source": {"path": str(folder)},
        "heads": {name: _set_values(head) for name, head in heads.items()},
        "batch": _set_values(spec.batch),
    }
    if spec.smaller:
        values["smaller"] = spec.smaller
    lines = [f"{key} = {toml(value)}" for key, value in values.items() if value not in ([], {})]
    return "\n".join(["# Written by `models optimise`; `models rm` removes it with its files.", *lines, ""])


def _set_values(part: Any) -> dict[str, Any]:
    values: dict[str, Any] = part.model_dump(mode="json", exclude_defaults=True)
    return values | ({"output": part.output} if isinstance(part, Head) else {})


def toml(value: Any) -> str:
    """A value as TOML: JSON's strings, numbers and lists are that as well; only tables are written otherwise."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _file(folder: Path, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # on the disk before an entry speaks of it
        with suppress(OSError):
            os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return {"path": path.relative_to(folder).as_posix(), "size": size, "sha256": sha256_of(path)}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
