"""Poison ledger: inputs that crash the runner, so that they are refused rather than the model."""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

from sidecar import wire
from sidecar.errors import PoisonInputError

POISON_CRASHES = 3  # crashes in a row on the same input after which that input is refused
_MEMORY = 1024
_INCIDENTS = 64

Input = tuple[str, Any]
"""Capability and item."""


class Fingerprint(NamedTuple):
    """Identity of an input: its size and hash, never its content."""

    size_bytes: int
    digest: bytes


def fingerprint(capability: str, item: Any) -> Fingerprint:
    """Hashes an item where it lies."""
    parts = wire.pack(item)
    digest = hashlib.blake2b(capability.encode(), digest_size=16)
    for part in parts:
        digest.update(part)
    return Fingerprint(sum(map(len, parts)), digest.digest())


class PoisonLedger:
    """Crashes by input. While it is empty, which is nearly always, asking it costs nothing.

    An input that was alone in the runner is to blame. Of several, those that are answered later are cleared, and who
    is left of them is to blame.
    """

    def __init__(self) -> None:
        self._crashes: OrderedDict[Fingerprint, int] = OrderedDict()
        self._incidents: deque[set[Fingerprint]] = deque(maxlen=_INCIDENTS)

    def check(self, capability: str, item: Any) -> None:
        """Raises PoisonInputError for an input that crashed the runner before."""
        if self._suspects(item) and self._crashes.get(fingerprint(capability, item), 0) >= POISON_CRASHES:
            raise PoisonInputError("this input has crashed the model repeatedly and is not tried again; change it")

    def accuse(self, inputs: Iterable[Input]) -> None:
        """The runner crashed, and it may have been over any of these."""
        suspects = {fingerprint(capability, item) for capability, item in inputs}
        if len(suspects) == 1:
            self._convict(suspects.pop())
        elif suspects:
            self._incidents.append(suspects)

    def absolve(self, capability: str, item: Any) -> None:
        """It was answered: crashes count only in a row."""
        if not self._suspects(item):
            return
        key = fingerprint(capability, item)
        self._crashes.pop(key, None)
        for suspects in [each for each in self._incidents if key in each]:
            suspects.discard(key)
            if len(suspects) == 1:
                self._convict(next(iter(suspects)))

    def _suspects(self, item: Any) -> bool:
        """Whether one of this size is suspected: an hour of sound is not hashed because of some text."""
        if not self._crashes and not self._incidents:
            return False
        size_bytes = sum(map(len, wire.pack(item)))
        return any(each.size_bytes == size_bytes for each in chain(self._crashes, *self._incidents))

    def _convict(self, key: Fingerprint) -> None:
        # What else it was seen at needs no other explanation.
        self._incidents = deque((each for each in self._incidents if key not in each), _INCIDENTS)
        self._crashes[key] = self._crashes.pop(key, 0) + 1
        while len(self._crashes) > _MEMORY:
            self._crashes.popitem(last=False)
