"""Output that may block (a disk that syncs, a pipe nobody reads), taken off the run loop."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """A daemon thread that hands the newest `keep` items to `sink`, in order.

    Items here are snapshots: an older one that was dropped says nothing that a newer one does not. The first OSError of
    the sink goes to `failed`, and later items are still tried. With `retry_s`, so is the last one, as often.
    """

    def __init__(
        self,
        sink: Callable[[Item], None],
        *,
        keep: int,
        failed: Callable[[OSError], None],
        retry_s: float | None = None,
    ) -> None:
        self._sink = sink
        self._failed = failed
        self._retry_s = retry_s
        self._items: collections.deque[Item] = collections.deque(maxlen=keep)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="outbox")
        self._thread.start()

    def put(self, item: Item) -> None:
        """Never blocks for longer than the other side needs to take an item."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Wait until everything is out, but no longer than `timeout_s`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        silent = False
        while True:
            with self._changed:
                while not self._items and not self._closed:
                    self._changed.wait()
                if not self._items:
                    return
                item = self._items.popleft()
            try:
                self._sink(item)
                silent = False
            except OSError as error:
                if not silent:
                    self._failed(error)
                silent = True
                if self._retry_s is not None:
                    self._keep_for_later(item, self._retry_s)

    def _keep_for_later(self, item: Item, delay_s: float) -> None:
        """Wait, but not with a newer item or the end to see to; without a newer one `item` is the next again."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, delay_s)
            if not self._items and not self._closed:
                self._items.append(item)


def write_all(fd: int, data: bytes) -> None:
    """Past Python's own buffering: a closed pipe raises here and not once more at the interpreter's end."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def say(line: str) -> None:
    """One line to the person at the terminal, if one is there."""
    with contextlib.suppress(OSError):
        write_all(2, f"{line}\n".encode(errors="replace"))
