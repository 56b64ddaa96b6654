"""Linters and types, as tests like any other."""

import subprocess
import sys

import pytest

from sidecar.settings import ROOT

COMMANDS = {
    "ruff": ["ruff", "check", "--no-cache", "."],
    "format": ["ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["mypy"],
    "mypy-windows": ["mypy", "--platform", "win32", "--exclude", "_posix"],
    "mypy-launcher": ["mypy", "launcher.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_checks_are_clean(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = [sys.executable, "-m", *COMMANDS[name]]
    if COMMANDS[name][0] == "mypy":
        command += ["--cache-dir", str(tmp_path_factory.getbasetemp() / "mypy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
