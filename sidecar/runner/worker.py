"""The runner process: loads one model, then answers INFER frames until stdin ends."""

import gc
import os
import queue
import sys
import threading
import time
from typing import Any

from sidecar import process, wire
from sidecar.capabilities import BY_NAME
from sidecar.catalogue.catalogue import Catalogue
from sidecar.errors import SidecarError
from sidecar.runner.adapters import Adapter, make_adapter
from sidecar.settings import Settings

# A model's own thread pool rarely gains beyond this on short inputs, and the host app wants cores too.
_MAX_THREADS = 8

frames_out_fd = -1
_sending = threading.Lock()


def main(argv: list[str]) -> int:
    """`python -m sidecar run <model-id>`."""
    frames_in_fd = _take_stdio()
    process.die_with_parent()
    process.leave_ending_to_parent()
    process.yield_to_host()
    try:
        settings = Settings.load()
        spec = Catalogue.of(settings).get(argv[0])
        cores = settings.threads or min(_MAX_THREADS, process.usable_cores())
        threads = min(spec.threads or cores, cores)
        started = time.perf_counter()
        adapter = make_adapter(spec, threads)
        adapter.load(lambda item, done, total, unit: _send(wire.Progress(item, done, total, unit)))
    except BaseException as error:
        _send(_as_error(0, error))
        raise
    work = Work(adapter)
    parallel = cores // threads
    threading.Thread(target=_read, args=(frames_in_fd, work), name="frames-in", daemon=True).start()
    for number in range(1, parallel):
        threading.Thread(target=work.run, name=f"compute-{number}", daemon=True).start()
    # What start-up made lives as long as the process: out of the collector's way, so that it never pauses a batch.
    gc.freeze()
    _send(wire.Ready(adapter.device, adapter.device_reason, (time.perf_counter() - started) * 1000, parallel))
    work.run()
    return 0


def _take_stdio() -> int:
    """Keep the frame descriptors to ourselves: a library that prints then reaches stderr, one that reads gets EOF."""
    global frames_out_fd
    frames_in_fd = os.dup(0)
    frames_out_fd = os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for fd in (frames_in_fd, frames_out_fd):
            msvcrt.setmode(fd, os.O_BINARY)
    sys.stdout = sys.stderr
    return frames_in_fd


def _send(message: wire.Message) -> None:
    view = memoryview(wire.encode(message))
    with _sending:
        while view:
            view = view[os.write(frames_out_fd, view) :]


def _as_error(batch_id: int, error: BaseException) -> wire.Error:
    if isinstance(error, SidecarError):
        return wire.Error(batch_id, error.code, error.message, error.retryable)
    if isinstance(error, MemoryError):
        return wire.Error(batch_id, "out_of_memory", f"the model ran out of memory: {error}", True)
    code = "inference_failed" if batch_id else "model_load_failed"
    return wire.Error(batch_id, code, f"{type(error).__name__}: {error}", False)


class Work:
    """Batches between the reading thread and the computing ones (one of them the main thread)."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._queue: queue.SimpleQueue[wire.Infer] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def put(self, message: wire.Message) -> None:
        """Called by the reading thread."""
        if isinstance(message, wire.Infer):
            self._queue.put(message)
        elif isinstance(message, wire.Cancel):
            self._cancelled.add(message.id)

    def run(self) -> None:
        """Compute for ever; the reading thread ends the process."""
        while True:
            batch = self._queue.get()
            if batch.id in self._cancelled:
                self._cancelled.discard(batch.id)
                _send(wire.Error(batch.id, "cancelled", "cancelled before it began", False))
                continue
            _send(self._answer(batch))
            self._cancelled.discard(batch.id)

    def _answer(self, batch: wire.Infer) -> wire.Message:
        try:
            outputs: list[Any] = BY_NAME[batch.capability].run_batch(self._adapter, batch.items)
            if len(outputs) != len(batch.items):
                raise RuntimeError(f"{batch.capability} gave {len(outputs)} outputs for {len(batch.items)} items")
            return wire.Result(batch.id, outputs)
        except Exception as error:  # whatever a model raises becomes a value before it crosses the process border
            return _as_error(batch.id, error)


def _read(fd: int, work: Work) -> None:
    decoder = wire.Decoder()
    code = 1
    try:
        while data := os.read(fd, 1 << 16):
            for message in decoder.feed(data):
                work.put(message)
        code = 0
    finally:
        # The server is gone, or out of step. Not sys.exit: the main thread may be in C code, at a batch that nobody
        # waits for any more.
        os._exit(code)
