"""Profiles: environments beside our own, each with its own lock, in which runners start. The launcher makes them."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from sidecar import process
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ConfigError, ProfileMissingError, ProfileNotFoundError
from sidecar.settings import ROOT, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILT_IN = ROOT / "installer" / "profiles"
CUDA = "cuda"
OWN = "base"
STAMP = "complete.json"

State = Literal["installed", "outdated", "broken", "unfinished", "absent"]

_REASONS: dict[State, str] = {
    "outdated": "has only an environment of an earlier version",
    "broken": "has an environment whose Python is gone",
    "unfinished": "has an environment that was not finished",
    "absent": "is not installed",
}


class Profile(BaseModel):
    """What `<name>.toml` says (installer/profiles/README.md). Sizes are of the finished environment, in MB."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    size_mb: int
    cpu_size_mb: int | None = None
    licence: str = ""
    notice: str | None = None
    needs_device: Literal["cuda"] | None = None
    platforms: tuple[str, ...] | None = None
    internal: bool = False

    def size(self, for_cpu: bool) -> str:
        """Of the build for the CPU, where there is one and it is that which would be installed; for people."""
        size_mb = self.cpu_size_mb if for_cpu and self.cpu_size_mb else self.size_mb
        return f"{size_mb} MB" if size_mb < 1000 else f"{size_mb / 1000:.1f} GB"


class Environment(NamedTuple):
    """A folder with a profile's packages; `lock_sha256` and `finished_at` are None while it is not finished."""

    root: Path
    lock_sha256: str | None
    finished_at: float

    @property
    def python(self) -> Path:
        return self.root / process.ENVIRONMENT_PYTHON

    def has_python(self) -> bool:
        """False after the Python that it was made from was removed or replaced by its next version."""
        try:
            lines = (self.root / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        homes = [line.partition("=")[2].strip() for line in lines if line.startswith("home")]
        return bool(homes) and Path(homes[0]).is_dir() and self.python.exists()


class Profiles:
    """Which profiles there are, and which of them a runner can be started in now. Everything is read from the disk.

    An environment counts by the lock that it was made from, whichever Python of the user's made it; of several (one for
    the CPU, one with CUDA) the newest.
    """

    def __init__(self, folder: Path, environments: Path, for_cpu: bool = False) -> None:
        self._folder = folder
        self._environments = environments
        self._for_cpu = for_cpu
        self.leaving: set[str] = set()
        """Being removed: no runner starts in them any more."""

    @classmethod
    def of(cls, settings: Settings) -> "Profiles":
        own = settings.profiles_dir
        folder = own.expanduser().absolute() if own else BUILT_IN
        return cls(folder, settings.data_dir / "env", takes_cpu_builds(settings.device))

    def known(self) -> list[Profile]:
        """All that models may need, by name. Raises ConfigError naming file and field."""
        profiles = [self._read(path) for path in sorted(self._folder.glob("*.toml"))]
        return [profile for profile in profiles if not profile.internal]

    def names(self) -> frozenset[str]:
        """All that an entry may name, whether their files can be read or not."""
        return frozenset({OWN, *(path.stem for path in self._folder.glob("*.toml"))})

    def get(self, name: str) -> Profile:
        """Raises ProfileNotFoundError, ConfigError."""
        known = self.known()
        for profile in known:
            if profile.name == name:
                return profile
        names = ", ".join(profile.name for profile in known)
        raise ProfileNotFoundError(f"no profile {name!r}; there are: {names}")

    def installed(self) -> frozenset[str]:
        """Those with a finished environment of the present lock; base is the one that we run in."""
        names = {environment.root.name.rpartition("-")[0] for environment in self._all()}
        return frozenset({OWN, *(name for name in names if self.state(name) == "installed")})

    def state(self, name: str) -> State:
        """As the disk has it now; one that is being removed is already absent."""
        return "installed" if name == OWN else self._look(name)[0]

    def reason(self, name: str) -> str:
        """Why no runner can be started in it, and how large it is, for people."""
        return self._told(name, self.state(name))

    def python(self, name: str) -> Path:
        """The interpreter of its environment. Raises ProfileMissingError, whose message names the cure."""
        if name == OWN:
            return Path(sys.executable)
        state, environment = self._look(name)
        if environment is None:
            raise ProfileMissingError(f"{self._told(name, state)} (cure: {cure(name)})")
        return environment.python

    def needed(self, spec: ModelSpec, device: str) -> str:
        """The profile whose environment the model's runner gets: its own, or CUDA's for what that makes faster."""
        wanted = spec.profile == OWN and spec.runtime == "onnx" and spec.device != "cpu" and device in ("auto", "cuda")
        return CUDA if wanted and self.state(CUDA) == "installed" else spec.profile

    def interpreter(self, spec: ModelSpec, device: str) -> Path | None:
        """What the model's runner is started with; None is ourselves. Raises ProfileMissingError."""
        name = self.needed(spec, device)
        return None if name == OWN else self.python(name)

    def fingerprint(self) -> tuple[tuple[str, int], ...]:
        """Changes when an environment is finished or removed; costs one `stat` for each."""
        found = []
        for path in self._environments.glob("*/" + STAMP):
            try:
                found.append((path.parent.name, path.stat().st_mtime_ns))
            except OSError:
                continue  # removed in this very moment
        return tuple(sorted(found))

    def _told(self, name: str, state: State) -> str:
        try:
            size = f" ({self._read(self._folder / f'{name}.toml').size(self._for_cpu)})"
        except ConfigError:  # told where it is asked for by itself
            size = ""
        return f"the profile {name!r}{size} {_REASONS.get(state, 'is installed')}"

    def _look(self, name: str) -> tuple[State, Environment | None]:
        if name in self.leaving:
            return "absent", None
        environments = [each for each in self._all() if each.root.name.rpartition("-")[0] == name]
        locks = self._locks(name)
        present = [each for each in environments if each.lock_sha256 in locks]
        usable = [each for each in present if each.has_python()]
        if usable:
            return "installed", max(usable, key=lambda each: each.finished_at)
        if present:
            return "broken", None
        if any(each.lock_sha256 for each in environments):
            return "outdated", None
        return ("unfinished" if environments else "absent"), None

    def _all(self) -> list[Environment]:
        found = []
        for root in self._environments.glob("*-*"):
            if not root.is_dir() or "." in root.name.rpartition("-")[2]:
                continue  # the launcher's own files beside the environments
            try:
                stamp = json.loads((root / STAMP).read_bytes())
                found.append(Environment(root, str(stamp["lock_sha256"]), float(stamp["finished_at"])))
            except (OSError, ValueError, KeyError, TypeError):
                found.append(Environment(root, None, 0.0))
        return found

    def _locks(self, name: str) -> set[str]:
        """Hashes of the profile's present locks, as the launcher stamps them."""
        hashes = set()
        for path in (self._folder / f"{name}.lock", self._folder / f"{name}-cpu.lock"):
            try:
                hashes.add(hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest())
            except OSError:
                continue
        return hashes

    def _read(self, path: Path) -> Profile:
        try:
            return Profile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"profile {path}: {error}") from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"profile {path}: {faults}") from None


def takes_cpu_builds(device: str, devices: Path = Path("/dev"), wsl: Path = Path("/usr/lib/wsl/lib")) -> bool:
    """Whether the launcher installs builds for the CPU here, which are for Linux alone; as its `wants_cuda`."""
    if sys.platform != "linux" or device in ("cpu", "cuda"):
        return sys.platform == "linux" and device == "cpu"
    in_wsl = (devices / "dxg").exists() and (wsl / "libcuda.so.1").exists()
    return not in_wsl and not any(re.fullmatch(r"nvidia\d+", path.name) for path in devices.glob("nvidia*"))


def cure(name: str) -> str:
    """The command that makes, repairs or renews the profile's environment."""
    return f"python3 launcher.py install --with {name}"


def repair(name: str) -> str:
    """The commands for one that looks finished and does not work."""
    if name == OWN:  # we run in it: it cannot be removed first
        return "python3 launcher.py install --repair"
    return f"python3 launcher.py remove {name}, then {cure(name)}"
