"""The runner process: loads one model, then answers INFER frames until stdin ends."""

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from sidecar import process, wire
from sidecar.capabilities import BY_NAME, INTERNAL
from sidecar.capabilities.base import Capability
from sidecar.capabilities.decode import Decode
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import SidecarError
from sidecar.runner.adapters import Adapter, make_adapter

# A model's own thread pool rarely gains beyond this on short inputs, and the host app wants cores too.
_MAX_THREADS = 8

frames_out_fd = -1
_sending = threading.Lock()


def main(argv: list[str]) -> int:
    """`python -m sidecar run <model-id>`; the model itself arrives as the first frame (LOAD)."""
    frames_in_fd = _take_stdio()
    process.die_with_parent()
    process.leave_ending_to_parent()
    work = Work(frames_in_fd)
    # From the start: stdin's end is the end, also of a load that takes minutes.
    threading.Thread(target=work.serve, name="frames-in", daemon=True).start()
    try:
        order = work.orders.get()
        spec = ModelSpec.model_validate(order.spec)
        cores = order.threads or min(_MAX_THREADS, process.usable_cores())
        threads = min(spec.threads or cores, cores)
        started = time.perf_counter()
        adapter = make_adapter(spec, threads, order.device)
        adapter.load(lambda item, done, total, unit: _send(wire.Progress(item, done, total, unit)))
    except BaseException as error:
        _send(_as_error(0, error))
        raise
    parallel = cores // threads
    # Some libraries keep a pool of threads for each thread that calls them: those are called by the same ones always.
    compute = work.serve if threads == 1 else work.compute
    work.begin(adapter, parallel if threads == 1 else 0)
    for number in range(1, parallel):
        threading.Thread(target=compute, name=f"compute-{number}", daemon=True).start()
    # What start-up made lives as long as the process: out of the collector's way, so that it never pauses a batch.
    gc.freeze()
    _send(wire.Ready(adapter.device, adapter.device_reason, (time.perf_counter() - started) * 1000, parallel))
    compute()
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
    frame = wire.frame(message)
    with _sending:
        for part in frame:
            view = memoryview(part)
            while view:
                view = view[os.write(frames_out_fd, view) :]


def _as_error(batch_id: int, error: BaseException) -> wire.Error:
    if isinstance(error, SidecarError):
        return wire.Error(batch_id, error.code, error.message, error.retryable)
    if isinstance(error, MemoryError):
        return wire.Error(batch_id, "out_of_memory", f"the model ran out of memory: {error}", True)
    code = "inference_failed" if batch_id else "model_load_failed"
    if batch_id == 0 and isinstance(error, ImportError):
        code = "environment_broken"
    return wire.Error(batch_id, code, f"{type(error).__name__}: {error}", False)


def _capability(name: str) -> Capability[Any, Any, Any, Any] | Decode:
    return BY_NAME.get(name) or INTERNAL[name]


@dataclass(eq=False)
class _Stream:
    """A stream between two of its chunks."""

    id: int
    outputs: Iterator[Any]
    credit: int
    parked: bool = False
    """Out of the queue until its reader has kept up."""


class Work:
    """What is to be computed, and by which thread.

    There is a thread more than batches are computed at once. They take turns at the pipe: the one that reads a batch
    computes it itself, and meanwhile the next one reads ("leader and followers", Schmidt et al. 2000), so that no batch
    waits for a thread to wake up. The end of the pipe is the end of the process.

    A stream gives its place up after every chunk, so several advance side by side and a short request need not wait for
    a long one's end. One whose reader is slow waits outside the queue and costs nobody anything.
    """

    def __init__(self, frames_in_fd: int) -> None:
        self._fd = frames_in_fd
        self._decoder = wire.Decoder()
        self._reading = threading.Lock()
        self._places = 0
        self.orders: queue.SimpleQueue[wire.Load] = queue.SimpleQueue()
        self._queue: queue.SimpleQueue[wire.Infer | _Stream] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._unanswered: set[int] = set()
        self._cancelled: set[int] = set()
        self._changing = threading.Lock()

    def begin(self, adapter: Adapter, places: int) -> None:
        """The model is loaded; so many of the threads in `serve` may compute at once."""
        self._adapter = adapter
        with self._changing:
            self._places = places

    def serve(self) -> None:
        """Read and compute in turns with the other threads that are here."""
        done = False
        while True:
            self._do(self._next(done))
            done = True

    def compute(self) -> None:
        """Compute alone, what the thread in `serve` reads."""
        while True:
            self._do(self._queue.get())

    def _next(self, done: bool) -> wire.Infer | _Stream:
        """The next task, and a place to compute it in: the same one that this thread has just `done` another in."""
        with self._changing:
            if done:
                if not self._queue.empty():
                    return self._queue.get()
                self._places += 1
        with self._reading:
            while True:
                with self._changing:
                    if self._places and not self._queue.empty():
                        self._places -= 1
                        return self._queue.get()
                self._read()

    def _read(self) -> None:
        code = 1
        try:
            if data := os.read(self._fd, 1 << 16):
                for message in self._decoder.feed(data):
                    self._put(message)
                return
            code = 0
        except BaseException:
            traceback.print_exc()
        # The server is gone, or out of step. Not sys.exit: another thread may be in C code, at a batch that nobody
        # waits for any more.
        os._exit(code)

    def _put(self, message: wire.Message) -> None:
        match message:
            case wire.Infer():
                self._unanswered.add(message.id)
                self._queue.put(message)
            case wire.Load():
                self.orders.put(message)
            case wire.Cancel(id=batch_id):
                with self._changing:
                    if batch_id in self._unanswered:
                        self._cancelled.add(batch_id)
                        self._unpark(batch_id)
            case wire.Credit(id=batch_id, chunks=chunks):
                with self._changing:
                    if stream := self._streams.get(batch_id):
                        stream.credit += chunks
                        self._unpark(batch_id)

    def _do(self, task: wire.Infer | _Stream) -> None:
        try:
            if task.id in self._cancelled:
                self._drop(task)
            elif isinstance(task, _Stream):
                self._advance(task)
            elif task.credit:
                self._open(task)
            else:
                answer = self._answer(task)
                self._close(task.id)
                _send(answer)
        except BaseException as error:
            # Whatever a model raises becomes a value before it crosses the process border: the panics of libraries in
            # Rust, too, which are no Exceptions. This thread has a place that others wait for.
            self._close(task.id)
            _send(_as_error(task.id, error))

    def _answer(self, batch: wire.Infer) -> wire.Message:
        outputs: list[Any] = _capability(batch.capability).run_batch(self._adapter, batch.items)
        if len(outputs) != len(batch.items):
            raise RuntimeError(f"{batch.capability} gave {len(outputs)} outputs for {len(batch.items)} items")
        return wire.Result(batch.id, outputs)

    def _open(self, order: wire.Infer) -> None:
        outputs = _capability(order.capability).run_stream(self._adapter, order.items[0])
        stream = _Stream(order.id, iter(outputs), order.credit)
        with self._changing:
            self._streams[order.id] = stream
        self._advance(stream)

    def _advance(self, stream: _Stream) -> None:
        """One chunk, or a step towards it; then to the back of the queue, or out of it until there is credit."""
        try:
            output = next(stream.outputs)
        except StopIteration:
            self._close(stream.id)
            _send(wire.Result(stream.id, []))
            return
        if output is None:
            self._queue.put(stream)
            return
        _send(wire.Chunk(stream.id, output))
        with self._changing:
            stream.credit -= 1
            stream.parked = stream.credit <= 0 and stream.id not in self._cancelled
            if not stream.parked:
                self._queue.put(stream)

    def _unpark(self, batch_id: int) -> None:
        stream = self._streams.get(batch_id)
        if stream is not None and stream.parked:
            stream.parked = False
            self._queue.put(stream)

    def _drop(self, task: wire.Infer | _Stream) -> None:
        if isinstance(task, _Stream) and isinstance(task.outputs, Generator):
            task.outputs.close()  # its `finally` gives back what it holds
        self._close(task.id)
        _send(wire.Error(task.id, "cancelled", "cancelled", False))

    def _close(self, batch_id: int) -> None:
        with self._changing:
            self._streams.pop(batch_id, None)
            self._unanswered.discard(batch_id)
            self._cancelled.discard(batch_id)
