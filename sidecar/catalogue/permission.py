"""What needs the user's word before it is fetched, and what is a pickle whatever its name says."""

import zipfile
from pathlib import Path

from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.spec import ModelFile, ModelSpec, looks_like_pickle
from sidecar.errors import LicenceRequiredError, PickleRefusedError

# The first bytes of the pickle format's protocols 2 to 5.
_PROTOCOLS = frozenset(bytes([0x80, number]) for number in range(2, 6))


def check_consent(spec: ModelSpec, files: tuple[ModelFile, ...], lockfile: Lockfile) -> None:
    """Raises LicenceRequiredError, PickleRefusedError with the command that gives consent."""
    consent = lockfile.consent(spec.id)
    if spec.opt_in and not consent.licence:
        raise LicenceRequiredError(
            f"model {spec.id!r} is under {spec.licence}: {spec.opt_in}. If you agree: "
            f'`models pull {spec.id} --accept-licence`, or {_by_http(spec)} {{"accept_licence": true}}'
        )
    for file in files:
        if (file.pickle or looks_like_pickle(file.path, spec.runtime)) and file.path not in consent.pickles:
            raise _refused(spec, file.path)


def check_content(spec: ModelSpec, file: ModelFile, path: Path, lockfile: Lockfile) -> None:
    """A pickle under an innocent name. `path` is the file before it gets its name. Raises PickleRefusedError."""
    if is_pickle(path) and file.path not in lockfile.consent(spec.id).pickles:
        raise _refused(spec, file.path)


def is_pickle(path: Path) -> bool:
    """Whether the content is a pickle, bare or in a zip archive as torch.save writes it."""
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] in _PROTOCOLS:
        return True
    if head != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _refused(spec: ModelSpec, path: str) -> PickleRefusedError:
    return PickleRefusedError(
        f"model {spec.id!r}: {path} is a Python pickle, which can run any code when it is loaded. If you trust "
        f"{spec.source.origin if spec.source else 'its source'}: `models pull {spec.id} --allow-pickle {path}`, or "
        f'{_by_http(spec)} {{"allow_pickles": ["{path}"]}}'
    )


def _by_http(spec: ModelSpec) -> str:
    return f"POST /models/{spec.id}/download with"
