"""eSpeak NG as a voice: small, immediate, a hundred languages, and exact times of every phoneme."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator

from sidecar.capabilities.tts import PUNCTUATION, Delivery, Span, Speech
from sidecar.catalogue.spec import ModelSpec
from sidecar.runner import prosody
from sidecar.runner.adapters import Report
from sidecar.runner.espeak import WPM, WPM_RANGE, Sound, library
from sidecar.runner.readings import read

_PITCH_PER_OCTAVE = 72.0  # measured on en-us: 35 is 0.87, 65 is 1.16 times the fundamental of 50


class EspeakAdapter:
    """`options.voice` is the voice of requests that name none."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "eSpeak NG computes on the CPU, faster than it can be listened to by three orders"
        self.sentence_limit = 1000
        self._voice = str(spec.options.get("voice", "en-us"))

    def load(self, report: Report) -> None:
        self._library = library()
        self.sample_rate = self._library.sample_rate
        self._library.speak("warm up", self._voice)

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech]:
        low, high = (rate / WPM for rate in WPM_RANGE)
        speed, rest = prosody.bounded(delivery.speed, low, high)
        voice = voice or self._voice
        reading = read(sentence) if voice.lower().startswith("en") else None
        audio, sounds = self._library.speak(
            reading.text if reading else sentence,
            voice,
            wpm=round(WPM * speed),
            pitch=min(99, max(1, round(50 + _PITCH_PER_OCTAVE * math.log2(delivery.pitch)))),
            pause=pause,
        )
        stretched = prosody.amplify(prosody.stretch(audio, rest, self.sample_rate), delivery.volume)
        if not timings:
            yield Speech(stretched)
            return
        second = self.sample_rate / (len(stretched) / max(1, len(audio)))
        if reading:
            sounds = [sound._replace(position=reading.place(sound.position)) for sound in sounds]
        phonemes = _timed(sounds, len(audio), second)
        yield Speech(stretched, _words(sentence, phonemes), [span for _, span in phonemes])


def _timed(sounds: list[Sound], end: int, second: float) -> list[tuple[int, Span]]:
    """Each phoneme with the place of its word. It lasts until the next sound begins, which may be a pause.

    One that lasts no time (some languages' palatal and doubled ones) is written with its neighbour.
    """
    ends = [sound.sample for sound in sounds[1:]] + [end]
    found: list[tuple[int, Span]] = []
    held = ""
    for sound, until in zip(sounds, ends, strict=True):
        if sound.ipa and until <= sound.sample:
            held += sound.ipa
        elif sound.ipa:
            found.append((sound.position, Span(held + sound.ipa, sound.sample / second, until / second)))
            held = ""
        elif held and found:
            found[-1] = found[-1][0], found[-1][1]._replace(text=found[-1][1].text + held)
            held = ""
    return found


def _words(sentence: str, phonemes: list[tuple[int, Span]]) -> list[Span]:
    """The words as written: a number is several to the synthesiser and one here, "of the" is one and two here."""
    written = [(match.start(), match.end()) for match in re.finditer(r"\S+", sentence)]
    sounds: dict[int, list[Span]] = {}
    word = 0
    for position, phoneme in phonemes:
        # Words follow each other: a place that lies further back is a slip of the library's.
        word = max(word, bisect_right(written, (position, len(sentence) + 1)) - 1)
        sounds.setdefault(word, []).append(phoneme)
    words: list[Span] = []
    for word, spans in sounds.items():
        silent = word + 1
        while silent < len(written) and silent not in sounds:
            silent += 1
        texts = [sentence[begin:end].strip(PUNCTUATION) for begin, end in written[word:silent]]
        words += _shared([text for text in texts if text.strip("-")], spans)
    return words


def _shared(texts: list[str], spans: list[Span]) -> list[Span]:
    """Words that are spoken as one share its phonemes by their length."""
    total = sum(map(len, texts))
    borders = [0]
    for count in range(1, len(texts) + 1):
        share = sum(map(len, texts[:count])) / total
        borders.append(min(len(spans), max(borders[-1], round(share * len(spans)))))
    return [
        Span(text, spans[first].start_s, spans[last - 1].end_s)
        for text, first, last in zip(texts, borders, borders[1:], strict=False)
        if first < last
    ]
