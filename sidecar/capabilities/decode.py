"""Decoding: an audio file of any container and codec → 16 kHz mono float32, in pieces.

No capability of the user's, and in no list of them: it is what the sidecar asks of its own decoder process.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypedDict


class DecodeItem(TypedDict):
    """The file: its bytes as an array of uint8, or a path that only this user's processes can follow."""

    data: Any
    path: str | None
    identity: tuple[int, ...]
    """Device, inode, size and time of change (ns) of what `path` leads to: it is read only if it is that."""
    max_s: float


class Decoded(TypedDict):
    """A piece of the sound: float32 (n,), mono, 16 kHz, −1..1; `sample_rate` (Hz) is the source's."""

    samples: Any
    sample_rate: int


class AudioDecoder(Protocol):
    """What an adapter offers to decoding."""

    def decode(self, item: DecodeItem) -> Iterator[Decoded]:
        """Pieces in order. Raises AudioError, AudioTooLongError, OutOfMemoryError."""


class Decode:
    """In the runner, on an AudioDecoder."""

    name = "decode"

    def run_batch(self, adapter: Any, items: Sequence[DecodeItem]) -> list[list[Decoded]]:
        return [list(adapter.decode(item)) for item in items]

    def run_stream(self, adapter: Any, item: DecodeItem) -> Iterator[Decoded]:
        yield from adapter.decode(item)
