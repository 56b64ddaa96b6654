"""The watch on what comes and goes beside the server."""

import asyncio

import pytest

from sidecar.server import installs


def test_a_change_that_cannot_be_followed_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installs, "_WATCH_S", 0.01)
    looks = iter([0, 1, 1, 2])
    followed = asyncio.Event()

    async def changed() -> None:
        if not caplog.records:
            raise OSError("a disk that is gone")
        followed.set()

    async def test() -> None:
        task = asyncio.ensure_future(installs.watch(lambda: next(looks, 2), changed))
        await asyncio.wait_for(followed.wait(), 5)
        task.cancel()

    asyncio.run(test())
    assert "could not be followed" in caplog.text and "a disk that is gone" in caplog.text
