"""Sound as numbers, piece by piece: mono pieces of any rate → 16 kHz float32. numpy and soxr come with the first one.

Used on both sides: by the decoder process, and by the server for what needs no decoder.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.errors import AudioError, AudioTooLongError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

MIN_RATE, MAX_RATE = 1000, 768_000
MAX_CHANNELS = 8
PIECE_S = 1.0
_LARGE_BYTES = 16 << 20


class Sound(bytearray):
    """Bytes of samples. An hour of them is dropped by the event loop, and not freed by it."""

    def __del__(self) -> None:
        if len(self) > _LARGE_BYTES:
            with suppress(RuntimeError):  # the interpreter ends
                threading.Thread(target=free, args=(self,), name="free", daemon=True).start()


def free(buffer: bytearray) -> None:
    """Give its memory back in parts: to free an hour of sound at once takes 30 ms, in which no thread could run."""
    with suppress(BufferError):  # somebody still looks at it
        while len(buffer) > 1 << 20:
            del buffer[len(buffer) // 2 - 1 :]


@dataclass(frozen=True)
class Audio:
    """Decoded sound: `samples` are float32, mono, 16 kHz, −1..1, C-contiguous; `sample_rate` (Hz) is the source's."""

    samples: "Samples"
    duration_s: float
    sample_rate: int

    @classmethod
    def of(cls, sound: Sound, sample_rate: int) -> "Audio":
        """The sound of float32 bytes, which are not copied. Raises AudioError when there are none."""
        import numpy as np

        samples = np.frombuffer(sound, dtype=np.float32)
        if not len(samples):
            raise AudioError("the audio is empty: it holds no samples")
        return cls(samples, len(samples) / SAMPLE_RATE, sample_rate)


class Resampler:
    """Takes mono pieces of any rate, collects 16 kHz float32 until `take`. Memory is bounded by `max_s`."""

    def __init__(self, max_s: float) -> None:
        self.source_rate = 0
        """Of the first piece (Hz)."""
        self.samples = 0
        """Made so far."""
        self._max_s = max_s
        self._out = Sound()
        self._pending: list[Samples] = []
        self._pending_samples = 0
        self._rate = 0
        self._stream: Any = None

    def put(self, piece: "Samples", rate: int) -> None:
        """Raises AudioError, AudioTooLongError."""
        if rate != self._rate:  # chained Ogg streams may change it on the way
            self._flush(last=True)
            self._start(rate)
        self._pending.append(piece)
        self._pending_samples += len(piece)
        if self._pending_samples >= rate * PIECE_S:
            self._flush(last=False)

    def finish(self) -> None:
        """No more pieces will come."""
        self._flush(last=True)

    @property
    def held_s(self) -> float:
        """What `take` would give."""
        return len(self._out) / 4 / SAMPLE_RATE

    def take(self) -> Sound:
        """What is made and was not yet taken: float32."""
        taken, self._out = self._out, Sound()
        return taken

    def _start(self, rate: int) -> None:
        import soxr

        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"the audio has {rate} samples a second: not within {MIN_RATE} to {MAX_RATE}")
        self._rate = rate
        self.source_rate = self.source_rate or rate
        self._stream = None
        if rate != SAMPLE_RATE:
            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def _flush(self, last: bool) -> None:
        import numpy as np

        if not self._rate:
            return
        piece = np.concatenate(self._pending) if self._pending else np.empty(0, np.float32)
        self._pending, self._pending_samples = [], 0
        if not np.isfinite(piece).all():
            raise AudioError("the audio holds samples that are no numbers (NaN or infinite)")
        if self._stream is not None:
            piece = self._stream.resample_chunk(piece, last=last)
        # Lossy codecs and the resampler overshoot a little.
        self._out += np.clip(piece.astype(np.float32, copy=False), -1.0, 1.0).data.cast("B")
        self.samples += len(piece)
        if self.samples > self._max_s * SAMPLE_RATE:
            raise too_long(None, self._max_s)


def mean_of_channels(data: Any) -> "Samples":
    """float32 (n,), −1..1, of samples (channels, n) as they are stored: floats, or integers of their full range."""
    import numpy as np

    kind, bits = data.dtype.kind, data.dtype.itemsize * 8
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
        floats = data.astype(np.float32)
    if kind == "u":
        floats -= np.float32(1 << (bits - 1))
    if kind in "iu":
        floats *= np.float32(1 / (1 << (bits - 1)))
    mono: Samples = floats[0] if len(floats) == 1 else floats.mean(axis=0, dtype=np.float32)
    return mono


def too_long(duration_s: float | None, max_s: float) -> AudioTooLongError:
    """None where nobody knows how long it would be."""
    has = "goes on" if duration_s is None else f"has {duration_s:.0f} s"
    return AudioTooLongError(f"the audio {has}; the limit is {max_s:g} s (SIDECAR_MAX_AUDIO_S)")


def cut_off(announced: str, held: str) -> AudioError:
    """A header that promises more than there is."""
    return AudioError(f"the audio is cut off: its header announces {announced}, the file holds {held}")
