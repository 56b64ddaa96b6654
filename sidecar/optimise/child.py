"""The process that does the heavy part, seen from the command."""

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.errors import DownloadCancelledError, OptimiseError, OutOfMemoryError, from_wire
from sidecar.settings import role_command, runner_environment

_POLL_S = 0.1
_TAIL_LINES = 5
_SIGKILL = 9


class Step(NamedTuple):
    """What it does now; `done` of `total` steps are behind."""

    item: str
    done: int
    total: int


def run(
    python: Path | None, job: dict[str, Any], on_step: Callable[[Step], None], cancel: threading.Event, log: Path
) -> dict[str, Any]:
    """The worker's result. Raises OptimiseError with its last words, or DownloadCancelledError once `cancel` is set."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            role_command("optimise", python=python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=runner_environment(),
            encoding="utf-8",
        )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        while (line := _next(lines, cancel)) is not None:
            message = json.loads(line)
            match message.pop("event"):
                case "step":
                    on_step(Step(**message))
                case "result":
                    return dict(message)
                case "error":
                    raise from_wire(message["code"], message["message"])
        raise _death(process, log)
    except BrokenPipeError:
        raise _death(process, log) from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: "queue.SimpleQueue[str | None]", cancel: threading.Event) -> str | None:
    """A signal handler can only set an event, and a read would go on: hence the short waits."""
    while True:
        if cancel.is_set():
            raise DownloadCancelledError("cancelled; nothing was kept, and the model is as it was")
        try:
            return lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def _death(process: "subprocess.Popen[str]", log: Path) -> OptimiseError | OutOfMemoryError:
    code = process.wait()
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == -_SIGKILL:
        return OutOfMemoryError("the system ended the process, most likely for want of memory; close other programs")
    last = f"; its last words: {' | '.join(said[-_TAIL_LINES:])}" if said else ""
    return OptimiseError(f"the process ended with code {code}{last} (all of it: {log})")
