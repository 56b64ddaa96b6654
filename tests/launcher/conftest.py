"""Real environments from tiny wheels, made by a launcher.py that stands beside a fake `sidecar` package."""

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE_SIDECAR = Path(__file__).parent / "fake_sidecar"
# A leaked index or config of this machine must not decide what a test sees.
FORGOTTEN = ("PIP_", "UV_", "PYTHON", "SIDECAR_", "XDG_", "VIRTUAL_ENV", "CONDA_")


def _entry(name: str) -> zipfile.ZipInfo:
    """Of no time: what is made again two seconds later is the same wheel, as a lock says by its hash."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def make_wheel(folder: Path, name: str, files: dict[str, str], version: str = "1.0") -> Path:
    """A pure wheel of `name` that holds `files` (path in site-packages -> text)."""
    info = f"{name}-{version}.dist-info"
    texts = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in texts.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{file},sha256={digest},{len(text.encode())}")
            archive.writestr(_entry(file), text, zipfile.ZIP_DEFLATED)
        archive.writestr(_entry(f"{info}/RECORD"), "\n".join([*rows, f"{info}/RECORD,,", ""]), zipfile.ZIP_DEFLATED)
    return path


def lock_text(wheels: list[Path], wrong_hash: bool = False) -> str:
    """A complete lock of these wheels, and an entry that its marker leaves out."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        digest = hashlib.sha256(b"other" if wrong_hash else wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    lines.append(f"absent==1.0 ; sys_platform == 'other' \\\n    --hash=sha256:{'0' * 64}\n")
    return "".join(lines)


def write_profile(
    folder: Path, wheels: Path, name: str, size_mb: int = 1, wrong_hash: bool = False, more: str = "", **modules: str
) -> None:
    """TOML and lock of a profile with one wheel for each module, all of them probed."""
    made = [make_wheel(wheels, module, {f"{module}.py": text}) for module, text in modules.items()]
    (folder / f"{name}.lock").write_text(lock_text(made, wrong_hash), encoding="utf-8")
    text = (
        f'# test\nname = "{name}"\ndescription = "a test"\nprobe = {json.dumps(list(modules))}\nsize_mb = {size_mb}\n'
    )
    (folder / f"{name}.toml").write_text(text + more, encoding="utf-8")


@dataclass
class Place:
    """A copy of launcher.py with profiles, wheels, a data folder and a fake sidecar of its own."""

    folder: Path
    env: dict[str, str]
    python: str = sys.executable
    home: Path = field(init=False)
    wheels: Path = field(init=False)
    profiles: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home, self.wheels, self.profiles = (self.folder / name for name in ("home", "wheels", "profiles"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiles.mkdir()
        shutil.copy(ROOT / "launcher.py", self.folder)
        shutil.copytree(FAKE_SIDECAR, self.folder / "sidecar", ignore=shutil.ignore_patterns("__pycache__"))
        self.env = {**self.env, "SIDECAR_HOME": str(self.home), "SIDECAR_PROFILES": str(self.profiles)}
        self.profile("base", tiny="VALUE = 1\n")

    def profile(self, name: str, size_mb: int = 1, wrong_hash: bool = False, more: str = "", **modules: str) -> None:
        """Write the profile `name`: one wheel for each module, all of them probed. `more` goes into its TOML."""
        write_profile(self.profiles, self.wheels, name, size_mb, wrong_hash, more, **modules)

    def command(self, *arguments: str) -> list[str]:
        return [self.python, str(self.folder / "launcher.py"), *arguments]

    def launch(
        self, *arguments: str, wrapper: tuple[str, ...] = (), cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*wrapper, *self.command(*arguments)],
            env={**self.env, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    def install(self, *arguments: str, **env: Any) -> subprocess.CompletedProcess[str]:
        return self.launch("install", "--wheels", str(self.wheels), *arguments, **env)

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*arguments), env={**self.env, **env}, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8"
        )

    def environments(self) -> list[Path]:
        return sorted(path for path in (self.home / "env").glob("*") if path.is_dir())

    def finished(self) -> list[Path]:
        return [path for path in self.environments() if (path / "complete.json").exists()]


def gate(folder: Path) -> tuple[str, Path, Path]:
    """Source of a module whose import reports (its pid, in the first file) and then waits for the second file."""
    reached, go = folder / "reached", folder / "go"
    source = f"""
import os, time
if not os.path.exists({str(go)!r}):
    with open({str(reached) + ".new"!r}, "w") as file:
        file.write(str(os.getpid()))
    os.replace({str(reached) + ".new"!r}, {str(reached)!r})
    deadline = time.monotonic() + 30
    while not os.path.exists({str(go)!r}) and time.monotonic() < deadline:
        time.sleep(0.02)
"""
    return source, reached, go


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """The condition's first true value; fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    pytest.fail("the condition did not come true in time")


def is_running(pid: int) -> bool:
    """Alive and no zombie: an orphan in a container may stay one for want of an init."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


@pytest.fixture
def uv_path(tmp_path: Path) -> str:
    """A PATH on which uv is all of Python's tools."""
    uv = find_uv()
    if uv is None:
        pytest.skip("needs uv")
    folder = tmp_path / "uv-bin"
    folder.mkdir()
    (folder / "uv").symlink_to(uv)
    return f"{folder}:/usr/bin:/bin"


@pytest.fixture
def pip_path(tmp_path: Path) -> str:
    """A PATH without uv."""
    folder = tmp_path / "no-bin"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def bare_env(tmp_path: Path) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(FORGOTTEN)}
    user_home = tmp_path / "user"
    user_home.mkdir()
    return {**env, "HOME": str(user_home), "PIP_CONFIG_FILE": os.devnull, "UV_CACHE_DIR": str(tmp_path / "uv-cache")}


@pytest.fixture
def place(tmp_path: Path, bare_env: dict[str, str], uv_path: str) -> Place:
    """Uses uv, which is fast; the path has a space and letters that are no ASCII."""
    return Place(tmp_path / "Ünser Ort", {**bare_env, "PATH": uv_path})


@pytest.fixture
def pip_place(tmp_path: Path, bare_env: dict[str, str], pip_path: str) -> Place:
    return Place(tmp_path / "mit Pip é", {**bare_env, "PATH": pip_path})


@pytest.fixture
def launcher() -> ModuleType:
    """launcher.py as a module."""
    spec = importlib.util.spec_from_file_location("launcher_under_test", ROOT / "launcher.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    """What a test appends here is dead after it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
