"""From what a neural voice has made to what is heard: pitch, speed and loudness as asked for, pauses, and times."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sidecar.capabilities.tts import Delivery, Span, Speech
from sidecar.runner import prosody
from sidecar.runner.transcript import Transcript, timed

_PAUSE_S = 0.2


def wordless(sample_rate: int) -> Speech:
    """In place of a sentence that is nothing but punctuation, which a neural voice makes noises of."""
    return Speech(prosody.silence(_PAUSE_S, sample_rate))


def native_speed(delivery: Delivery, low: float, high: float) -> tuple[float, float]:
    """The speed to synthesise at, within what the voice can do, and the stretch that is left for `finished`."""
    # Raising the pitch afterwards makes the speech faster by the same factor.
    return prosody.bounded(delivery.speed / delivery.pitch, low, high)


def finished(
    audio: Any,
    sample_rate: int,
    delivery: Delivery,
    rest: float,
    *,
    pause: bool,
    transcript: Transcript,
    durations: Sequence[float] | None,
    offset: int = 0,
    name: Callable[[str], str] = str,
) -> Speech:
    """`audio` is int16; `durations` are the samples of each symbol, the first of which begins at sample `offset`.

    None gives no times.
    """
    made = len(audio)
    audio = prosody.stretch(prosody.shift(audio, delivery.pitch, sample_rate), rest, sample_rate)
    audio = prosody.amplify(audio, delivery.volume)
    second = sample_rate * made / len(audio) if len(audio) else sample_rate
    words: list[Span] = []
    phonemes: list[Span] = []
    if durations is not None:
        words, phonemes = timed(transcript, [samples / second for samples in durations], name)
        shift_s = offset / second
        words, phonemes = (
            [span._replace(start_s=max(0.0, span.start_s + shift_s), end_s=span.end_s + shift_s) for span in spans]
            for spans in (words, phonemes)
        )
    if pause:
        audio = np.concatenate((audio, prosody.silence(_PAUSE_S, sample_rate)))
    return Speech(audio, words, phonemes)
