"""When to try again: a pure policy, and the loop that obeys it."""

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from sidecar.catalogue.origin import Interrupted, Origin
from sidecar.errors import DownloadCancelledError, DownloadError

_FIRST_S = 0.5
_LONGEST_S = 30.0
_PATIENCE_S = 300.0  # a Retry-After beyond this is left to the user
TRIES = 6
TRIES_UNREACHABLE = 3

Result = TypeVar("Result")


def delay_s(failures: int, retry_after_s: float | None, jitter: float) -> float:
    """Pause before the next try after `failures` in a row; jitter in 0…1. The server may ask for a longer one."""
    backoff = min(_LONGEST_S, _FIRST_S * 2.0 ** (failures - 1)) * (0.5 + 0.5 * jitter)
    return max(backoff, retry_after_s or 0.0)


class Retries:
    """Failures in a row of one download; progress clears them."""

    def __init__(self, origin: Origin, repo: str, stopped: threading.Event) -> None:
        self._origin = origin
        self._repo = repo
        self._stopped = stopped
        self._failures = 0
        self._answered = False

    def progressed(self) -> None:
        """Something arrived: whatever failed before is past."""
        self._failures = 0
        self._answered = True

    def after(self, error: Interrupted) -> None:
        """Pause as long as it takes, or give up: raises DownloadError, OfflineError, DownloadCancelledError."""
        self.check()
        self._failures += 1
        first_contact = error.unreachable and not self._answered
        pause_s = delay_s(self._failures, error.retry_after_s, random.random())
        if self._failures >= (TRIES_UNREACHABLE if first_contact else TRIES) or pause_s > _PATIENCE_S:
            raise self._final(error, first_contact)
        self._stopped.wait(pause_s)
        self.check()

    def check(self) -> None:
        """Raises DownloadCancelledError once the download is to stop."""
        if self._stopped.is_set():
            raise DownloadCancelledError(f"model {self._origin.model_id!r}: cancelled; what has arrived is kept")

    def run(self, request: Callable[[], Result]) -> Result:
        """The request's result, after as many tries as it needs."""
        while True:
            try:
                return request()
            except Interrupted as error:
                self.after(error)

    def _final(self, error: Interrupted, first_contact: bool) -> DownloadError:
        if first_contact:
            cure = f"check the connection, {self._origin.setting} and proxies"
            return self._origin.unreachable(self._repo, str(error), cure)
        return DownloadError(
            f"model {self._origin.model_id!r}: {self._repo}: {error} ({self._failures} times in a row, nothing new in "
            f"between); try again later: `models pull {self._origin.model_id}` goes on where this ended",
            retry_after_s=error.retry_after_s,
        )
