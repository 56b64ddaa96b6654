"""Models as folders, for computers without the network: export, and import with the same checks as a download."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from sidecar.catalogue.cache import PART, ModelCache, check_room, writing
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.lockfile import Entry
from sidecar.catalogue.permission import check_consent, check_content
from sidecar.catalogue.spec import ModelFile, ModelSpec, is_commit, safe_path
from sidecar.errors import HashMismatchError, ModelNotFoundError, ModelUnavailableError

MANIFEST = "sidecar-model.json"
_BLOCK_BYTES = 1 << 20

OnBytes = Callable[[str, int], None]


class Manifest(BaseModel):
    """What an exported folder says of itself."""

    id: str
    entry: Entry


def export_folder(spec: ModelSpec, cache: ModelCache, target: Path, on_bytes: OnBytes | None = None) -> Path:
    """Copy a whole model to `target/<id>`, verified on the way. Raises ModelUnavailableError, DownloadError."""
    if not spec.is_hub or not spec.source or not spec.source.origin:
        raise ModelUnavailableError(f"model {spec.id!r} was not downloaded; copy {spec.folder}")
    if cache.state(spec) != "complete":
        raise ModelUnavailableError(f"model {spec.id!r} is not on this computer: `models pull {spec.id}` first")
    folder, made = target / spec.id, []
    with cache.exclusive(spec.id), writing(target, spec.id):
        for file in cache.files(spec):
            made.append(_copy(spec, file, cache.folder(spec) / file.path, folder / file.path, on_bytes, None))
        entry = cache.entry(spec) or Entry(
            repo=spec.source.origin, ref=spec.source.revision, revision=cache.revision(spec) or "imported", files=()
        )
        manifest = Manifest(id=spec.id, entry=entry.model_copy(update={"files": tuple(made)}))
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return folder


def import_folder(
    catalogue: Catalogue,
    source: Path,
    model_id: str | None = None,
    progress: Callable[[ModelSpec], OnBytes] = lambda _: lambda _path, _count: None,
) -> list[str]:
    """Copy what an export wrote, or any folder with the files of `model_id`, into the cache. Returns the ids.

    `progress` is asked once per model for what is then told of its bytes.

    Raises ModelNotFoundError where nothing fits, ModelUnsupportedError, HashMismatchError, LicenceRequiredError,
    PickleRefusedError, DiskFullError, CacheReadOnlyError.
    """
    if not source.is_dir():
        raise ModelNotFoundError(f"{source} is no folder; name one that `models export` wrote, or one with the files")
    found = [source] if (source / MANIFEST).is_file() else sorted(path.parent for path in source.glob(f"*/{MANIFEST}"))
    if not found and model_id is None:
        raise ModelNotFoundError(
            f"{source} is no exported model (it has no {MANIFEST}); say which one it is: "
            f"`models import {source} --id ID`"
        )
    chosen = []
    for folder in found or [source]:
        manifest = _read_manifest(folder)
        if model_id and manifest and manifest.id != model_id:
            raise ModelNotFoundError(f"{folder} is model {manifest.id!r}, not {model_id!r}")
        spec = catalogue.get(manifest.id if manifest else model_id or "")
        catalogue.check_supported(spec)
        chosen.append((spec, folder, manifest))
    assert catalogue.cache is not None
    for spec, folder, manifest in chosen:
        _import(spec, catalogue.cache, folder, manifest, progress(spec))
    catalogue.refresh()
    return [spec.id for spec, _, _ in chosen]


def _import(spec: ModelSpec, cache: ModelCache, source: Path, manifest: Manifest | None, on_bytes: OnBytes) -> None:
    if not spec.is_hub or not spec.source or not spec.source.origin:
        raise ModelUnavailableError(f"model {spec.id!r} has no files to import; they are in {spec.folder}")
    files = _expected(spec, cache, source, manifest)
    check_consent(spec, files, cache.lockfile)
    revision = cache.revision(spec) or (manifest.entry.revision if manifest else "imported")
    target = cache.root / spec.id / revision
    with cache.exclusive(spec.id):
        check_room(cache.root, spec.id, sum(_size(source / file.path) for file in files))
        with writing(cache.root, spec.id):
            made = [_copy(spec, file, source / file.path, target / file.path, on_bytes, cache) for file in files]
        entry = Entry(repo=spec.source.origin, ref=spec.source.revision, revision=revision, files=tuple(made))
        cache.lockfile.record(spec.id, entry)


def _expected(spec: ModelSpec, cache: ModelCache, source: Path, manifest: Manifest | None) -> tuple[ModelFile, ...]:
    """The files, as the catalogue or the lock know them; only where both are silent, as the manifest says."""
    assert spec.source
    known = cache.files(spec)
    if manifest is None:
        return known if cache.knows_all(spec) else (*known, *_chosen(spec, source))
    entry = manifest.entry
    if entry.repo != spec.source.origin or (is_commit(cache.revision(spec)) and entry.revision != cache.revision(spec)):
        raise HashMismatchError(
            f"model {spec.id!r}: {source} holds {entry.repo}@{entry.revision[:12]}, wanted is "
            f"{spec.source.origin}@{(cache.revision(spec) or 'main')[:12]}; export that one, or "
            f"`models rm {spec.id} --forget`"
        )
    if not cache.knows_all(spec):
        known = (*known, *(file for file in entry.files if file.path not in {one.path for one in known}))
    theirs = {file.path: file for file in entry.files}
    return tuple(
        file.model_copy(
            update={
                "size": other.size if file.size is None else file.size,
                "sha256": file.sha256 or other.sha256,
            }
        )
        if (other := theirs.get(file.path))
        else file
        for file in known
    )


def _chosen(spec: ModelSpec, source: Path) -> list[ModelFile]:
    """The files of a plain folder that the entry's patterns name; what hub clients keep under a dot is none of it."""
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    shown = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    chosen = spec.matching(shown)
    if not chosen and spec.source:
        raise ModelNotFoundError(f"model {spec.id!r}: {source} has no file like {', '.join(spec.source.include)}")
    try:
        return [ModelFile(path=safe_path(path)) for path in chosen]
    except ValueError as error:
        raise ModelNotFoundError(f"model {spec.id!r}: {source} has a file that is refused: {error}") from None


def _copy(
    spec: ModelSpec,
    file: ModelFile,
    source: Path,
    target: Path,
    on_bytes: OnBytes | None,
    cache: ModelCache | None,
) -> ModelFile:
    """One file, hashed on the way; it gets its name only when it is right. `cache` is None for an export."""
    if not source.is_file():
        raise ModelNotFoundError(f"model {spec.id!r}: {source} is missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    digest = hashlib.sha256()
    with source.open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(_BLOCK_BYTES):
            writer.write(block)
            digest.update(block)
            if on_bytes:
                on_bytes(file.path, len(block))
        writer.flush()
        os.fsync(writer.fileno())
    found = file.model_copy(update={"size": part.stat().st_size, "sha256": digest.hexdigest()})
    if (file.sha256 and file.sha256 != found.sha256) or (file.size is not None and file.size != found.size):
        part.unlink()
        raise HashMismatchError(
            f"model {spec.id!r}: {source} is not the expected file (sha256 {found.sha256}, {found.size:,} bytes); "
            "copy it again, or export it again on the other computer"
        )
    if cache:
        check_content(spec, file, part, cache.lockfile)
    os.replace(part, target)
    return found


def _read_manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise HashMismatchError(f"{path} is damaged: {error.errors()[0]['msg']}; export the model again") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
