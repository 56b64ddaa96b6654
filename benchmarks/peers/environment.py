"""The peers' own virtual environment: LitServe and mosec never meet our dependencies."""

import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import platformdirs

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements-peers.txt"
PLOT_REQUIREMENTS = REQUIREMENTS.with_name("requirements-plot.txt")
ENGINE = ("onnxruntime", "tokenizers", "numpy")


def peers_python() -> Path:
    """Interpreter of the peers, with the engine in our versions."""
    return made_python("peers", [*_lines(REQUIREMENTS), *(f"{name}=={version(name)}" for name in ENGINE)])


def plot_python() -> Path:
    """Interpreter of what draws."""
    return made_python("plot", _lines(PLOT_REQUIREMENTS))


def made_python(name: str, requirements: list[str]) -> Path:
    """Interpreter of an environment, made at the first call (by uv if there is one, else venv and pip)."""
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("ml-sidecar-benchmarks", False) / f"{name}-{key}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        print(f"making the environment {name} in {folder} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for command in _commands(folder, python, requirements):
            if subprocess.run(command).returncode != 0:
                raise SystemExit(f"cannot make the peers' environment: {' '.join(command)} failed")
        complete.touch()
    return python


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _commands(folder: Path, python: Path, requirements: list[str]) -> list[list[str]]:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        return [
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *requirements],
        ]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ]
