"""What works in the background fails visibly, whatever went wrong."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.profiles import Profiles
from sidecar.server import downloads, installs
from sidecar.server.downloads import Downloads
from sidecar.server.installs import Installs
from sidecar.settings import Settings
from tests.product import alive, until

LAUNCHER = """
import os, pathlib, sys, time
pathlib.Path({pid!r}).write_text(str(os.getpid()))
print("x" * 2_000_000, flush=True)
time.sleep(600)
"""


def test_a_launcher_that_talks_nonsense_is_ended_and_the_failure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "launcher.py").write_text(LAUNCHER.format(pid=str(pid)), encoding="utf-8")
    monkeypatch.setattr(installs, "ROOT", tmp_path)
    told: list[dict[str, Any]] = []

    async def ended() -> None: ...

    async def test() -> None:
        running = Installs(lambda event, data: told.append(data), ended, lambda name: False)
        running.start("torch")
        await asyncio.wait_for(running.settled("torch"), 30)
        assert running.progress("torch") is None
        assert (error := running.error("torch")) and "installing torch failed" in error.message

    asyncio.run(test())
    assert told[-1]["state"] == "failed" and told[-1]["code"] == "profile_failed"
    left = int(pid.read_text())
    until(lambda: not psutil.pid_exists(left) or not alive(psutil.Process(left)), "the launcher is gone", 10)


def test_a_download_that_breaks_in_an_unforeseen_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(downloads, "download", broken)
    settings = Settings.load(home=tmp_path)
    spec = Catalogue.of(settings, Profiles.of(settings)).get("kokoro-82m")
    told: list[dict[str, Any]] = []

    async def test() -> None:
        running = Downloads(ModelCache.of(settings), lambda event, data: told.append(data), lambda spec: None)
        running.start(spec)
        deadline = asyncio.get_running_loop().time() + 30
        while running.progress(spec.id) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        assert (error := running.error(spec.id)) and "KeyError" in error.message

    asyncio.run(test())
    assert told[-1]["state"] == "failed" and told[-1]["code"] == "download_failed"
