"""A runtime without a model, for tests through real child processes: it misbehaves on command.

`options.load` in the catalogue TOML misbehaves at load: "crash", "hang", "fail", "slow" (progress every 50 ms for
`options.load_s`), "garbage" (writes onto the frame stream), "fail_while:PATH" (while PATH exists; else slow),
"until:PATH" (progress until PATH exists).
`options.tally` names a file that gets a line at each load; `options.live_s` crashes the process that long after it,
`options.dies_while` at every batch while that file exists. In a text, `!crash`, `!hang`, `!fail`, `!print`, `!garbage`,
`!oom`, `!panic`, `!child:S`, `!eat:MIB`, `!once:PATH` (crashes only while PATH does not exist) misbehave when its batch
runs, and `!until:PATH` waits for PATH.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from sidecar.catalogue.spec import ModelSpec
from sidecar.runner.adapters import Report

_COMMAND = re.compile(r"!(\w+)(?::(\S+))?")


class _PanicException(BaseException):
    """What libraries in Rust raise: no Exception, on purpose of theirs."""


class FakeAdapter:
    """Classifies by text length, so that answers differ and can be predicted."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "fake"
        self._spec = spec
        self._eaten: list[bytearray] = []

    def load(self, report: Report) -> None:
        # Random, so that no page of it is shared or compressed away.
        self._eaten += [bytearray(os.urandom(1 << 20)) for _ in range(int(self._spec.options.get("ballast_mb", 0)))]
        if tally := self._spec.options.get("tally"):
            with open(tally, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
        if live_s := self._spec.options.get("live_s"):
            threading.Timer(live_s, self._misbehave, ("crash", "")).start()
        behaviour, _, argument = self._spec.options.get("load", "ok").partition(":")
        if behaviour not in ("ok", "slow", "until"):
            self._misbehave(behaviour, argument)
        if behaviour in ("slow", "fail_while", "until"):
            steps = max(1, int(self._spec.options.get("load_s", 1.0) / 0.05))
            step = 0
            while step < steps if behaviour != "until" else not os.path.exists(argument):
                report("weights", step % steps, steps, "steps")
                time.sleep(0.05)
                step += 1

    def labels(self, head: str) -> Sequence[str]:
        return self._spec.heads[head].labels

    def classify(self, texts: Sequence[Any], head: str) -> Any:
        if os.path.exists(self._spec.options.get("dies_while", "")):
            self._misbehave("crash", "")
        for text in texts:
            for command, argument in _COMMAND.findall(str(text)):
                self._misbehave(command, argument)
        time.sleep(self._spec.options.get("batch_s", 0.0) + self._spec.options.get("item_s", 0.0) * len(texts))
        count = len(self.labels(head))
        return [[5.0 if len(str(text)) % count == i else 0.0 for i in range(count)] for text in texts]

    def _misbehave(self, command: str, argument: str) -> None:
        if command == "once" and not os.path.exists(argument):
            with open(argument, "w", encoding="utf-8"):
                pass
            command = "crash"
        if command == "crash":
            print("fake runner: about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV if os.name == "posix" else signal.SIGTERM)
            time.sleep(10)
        elif command == "hang":
            time.sleep(3600)
        elif command == "until":
            while not os.path.exists(argument):
                time.sleep(0.01)
        elif command == "fail" or (command == "fail_while" and os.path.exists(argument)):
            raise ValueError("the fake model was told to fail")
        elif command == "panic":
            raise _PanicException("the fake library was told to panic")
        elif command == "oom":
            raise MemoryError("the fake model was told to run out of memory")
        elif command == "child":  # inherits our stderr and so holds its pipe open
            subprocess.Popen(["sleep", argument or "30"])
        elif command == "print":
            print("rubbish on stdout " * 100, flush=True)
            os.write(1, b"\x00\xff raw rubbish on descriptor 1\n")
        elif command == "garbage":
            from sidecar.runner import worker

            os.write(worker.frames_out_fd, b"this is no frame at all")
            time.sleep(10)
        elif command == "eat":
            for _ in range(int(argument or 200)):
                self._eaten.append(bytearray(os.urandom(1024)) * 1024)
                time.sleep(0.005)
