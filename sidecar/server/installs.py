"""Profiles installed by the server: a child process of the launcher for each, one per profile however many ask."""

import asyncio
import json
import logging
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sidecar import process
from sidecar.errors import BY_CODE, ProfileError, ProfileNeededError, SidecarError
from sidecar.settings import ROOT

log = logging.getLogger("sidecar.server")

Publish = Callable[[str, dict[str, Any]], None]

_CLOSE_S = 3.0
_WATCH_S = 2.0
_LONGEST_LINE_BYTES = 1 << 20


@dataclass
class _Running:
    child: asyncio.subprocess.Process | None = None
    progress: dict[str, Any] | None = None
    failure: SidecarError | None = None
    cancelled: bool = False
    task: "asyncio.Task[None] | None" = None


class Installs:
    """Starts, shows and cancels installations; removes environments.

    `ended` is awaited when one has ended; `is_installed` then says whether it came to something.
    """

    def __init__(
        self, publish: Publish, ended: Callable[[], Awaitable[None]], is_installed: Callable[[str], bool]
    ) -> None:
        self._publish = publish
        self._ended = ended
        self._is_installed = is_installed
        self._running: dict[str, _Running] = {}
        self._errors: dict[str, SidecarError] = {}

    def start(self, name: str) -> None:
        """Begin, unless it is under way. The outcome shows in `error` and on /events."""
        if name in self._running:
            return
        self._errors.pop(name, None)
        running = self._running[name] = _Running()
        running.task = asyncio.get_running_loop().create_task(self._run(name, running), name=f"install-{name}")

    def cancel(self, name: str) -> bool:
        """Ask it to stop. What has been fetched stays for the next try. False if nothing was under way."""
        running = self._running.get(name)
        if running is None:
            return False
        running.cancelled = True
        if running.child is not None and running.child.returncode is None:
            process.end_tree(running.child.pid)
        return True

    def progress(self, name: str) -> dict[str, Any] | None:
        """item, done, total and unit of an installation under way."""
        running = self._running.get(name)
        return (running.progress or {"item": "waiting", "done": 0, "total": None}) if running else None

    def error(self, name: str) -> SidecarError | None:
        """Why the last one failed."""
        return self._errors.get(name)

    async def settled(self, name: str) -> None:
        """Return when no installation of this profile is under way."""
        running = self._running.get(name)
        if running is not None and running.task is not None:
            await asyncio.wait([running.task])

    async def remove(self, name: str) -> int:
        """Delete its environments; the bytes freed. Raises ProfileNeededError, ProfileError."""
        self._errors.pop(name, None)
        child = await _start_launcher("remove", name, "--unloaded", "--json", "--events")
        out, _ = await child.communicate()
        last = _parse(out.splitlines()[-1] if out else b"")
        if child.returncode != 0:
            raise _explain(last, f"the launcher ended with exit code {child.returncode}")
        return int(last.get("freed_bytes", 0))

    async def close(self) -> None:
        """End all; unfinished environments are never used and are repaired by the next try."""
        for name in self._running:
            self.cancel(name)
        if tasks := [running.task for running in self._running.values() if running.task]:
            await asyncio.wait(tasks, timeout=_CLOSE_S)

    async def _run(self, name: str, running: _Running) -> None:
        self._publish("profile", {"profile": name, "state": "installing"})
        try:
            await self._install(name, running)
        except SidecarError as error:
            self._errors[name] = error
        except Exception as error:  # a bug of ours must show as a failure, too
            log.exception("unexpected error while %s is installed", name)
            self._errors[name] = ProfileError(f"installing {name} failed: {type(error).__name__}; the log has more")
        finally:
            # Left to itself it would block as soon as nobody reads its output.
            if running.child is not None and running.child.returncode is None:
                process.end_tree(running.child.pid)
                await running.child.communicate()
            del self._running[name]
        if failed := self._errors.get(name):
            self._publish("profile", {"profile": name, "state": "failed", "code": failed.code, "error": failed.message})
            return
        await self._ended()
        # One that was cancelled may have been finished in that very moment.
        self._publish("profile", {"profile": name, "state": "installed" if self._is_installed(name) else "absent"})

    async def _install(self, name: str, running: _Running) -> None:
        """Raises SidecarError, unless it was cancelled."""
        # The launcher watches us: when we die, however, it ends its steps and itself.
        arguments = ("install", "--profile", name, "--events", "--watch-pid", str(os.getpid()))
        running.child = await _start_launcher(*arguments)
        if running.cancelled:  # while it was being started
            process.end_tree(running.child.pid)
        assert running.child.stdout is not None
        async for line in running.child.stdout:
            self._read(name, running, line)
        code = await running.child.wait()
        if code != 0 and not running.cancelled:
            raise running.failure or ProfileError(
                f"installing {name} ended with exit code {code}; the log has its words"
            )

    def _read(self, name: str, running: _Running, line: bytes) -> None:
        event = _parse(line)
        if event.get("phase") == "failed":
            running.failure = _explain(event, f"installing {name} failed")
        elif isinstance(progress := event.get("progress"), dict):
            running.progress = progress
            self._publish("profile", {"profile": name, "state": "installing", **progress})


async def watch(fingerprint: Callable[[], object], changed: Callable[[], Awaitable[None]]) -> None:
    """Await `changed` whenever the fingerprint is another: a person may install in a terminal beside us."""
    seen = fingerprint()
    while True:
        await asyncio.sleep(_WATCH_S)
        now = fingerprint()
        if now != seen:
            seen = now
            try:
                await changed()
            except Exception:  # the next change must still be seen
                log.exception("what came or went on the disk could not be followed")


async def _start_launcher(*arguments: str) -> asyncio.subprocess.Process:
    """The launcher by the Python that we come from. Its stderr, for people, goes to our log."""
    python = shutil.which("python3") if getattr(sys, "frozen", False) else sys.executable
    if python is None:
        raise ProfileError("making an environment takes Python 3.10 to 3.13 on this computer: install it first")
    try:
        return await asyncio.create_subprocess_exec(
            python,
            str(ROOT / "launcher.py"),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE_BYTES,
            # Not in our group: a SIGKILL of that would leave the steps behind, which only the launcher knows.
            start_new_session=True,
        )
    except OSError as error:
        raise ProfileError(f"cannot start the launcher: {error}") from None


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        log.info("launcher: %s", line.decode("utf-8", "replace").rstrip())
        return {}
    return message if isinstance(message, dict) else {}


def _explain(event: dict[str, Any], otherwise: str) -> SidecarError:
    """The launcher's error as ours: its code where we have it too."""
    told = event.get("error") or {}
    code, message = told.get("code"), str(told.get("message") or otherwise)
    kind = BY_CODE.get(str(code), ProfileError)
    return kind(message) if kind is not ProfileNeededError else ProfileNeededError(message)
