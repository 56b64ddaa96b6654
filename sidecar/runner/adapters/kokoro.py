"""Kokoro 82M in ONNX: StyleTTS 2 with a voice per file, 24 kHz.

Inputs of the graph: input_ids int64 (1, ids), style float32 (1, 256), speed float32 (1). Output: waveform float32, and
in some exports durations, in frames of 600 samples. A voice is float32 of shape (510, 1, 256): one style for each
number of symbols.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.voices import blend
from sidecar.errors import InputError, NoTimingsError
from sidecar.runner import prosody
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.alphabet import TIE, kokoro_name, kokoro_symbols
from sidecar.runner.delivery import finished, native_speed, wordless
from sidecar.runner.espeak import library
from sidecar.runner.graph import nodes, outputs, with_output
from sidecar.runner.session import graph_of, open_session
from sidecar.runner.transcript import Transcript, is_wordless, known, portions, transcribe

_SAMPLE_RATE = 24_000
_SYMBOLS = 510
_STYLE = 256
_HOP = 600
_PAD = 0
_SPEEDS = (0.5, 2.0)
# Predicted durations are limited from below here; the name is that of the exporter's trace.
_DURATIONS = "/encoder/Clip_output_0"
# The first letter of a voice, and what eSpeak NG calls its language. Japanese and Chinese (j, z) have an alphabet of
# phonemes that eSpeak does not speak.
ESPEAK_VOICES = {"a": "en-us", "b": "en-gb", "e": "es", "f": "fr", "h": "hi", "i": "it", "p": "pt-br"}
_ALIKE = {
    "«": "“",
    "»": "”",
    "–": "—",
    "-": "—",
    "。": ".",
    "，": ",",
    "、": ",",
    "！": "!",
    "？": "?",
}


class KokoroAdapter(BaseAdapter):
    """`options.voice` is the voice of requests that name none."""

    sample_rate = _SAMPLE_RATE
    sentence_limit = 400

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        super().__init__(spec, threads, device)
        self._voice = str(spec.options.get("voice", "af_heart"))
        self._style = lru_cache(maxsize=16)(self._read_style)

    def load(self, report: Report) -> None:
        path = graph_of(self._spec)
        tokenizer = json.loads((self._spec.folder / "tokenizer.json").read_text(encoding="utf-8"))
        self._ids: dict[str, int] = tokenizer["model"]["vocab"]
        self._espeak = library()
        self._open(path)
        for _ in self.speak("Ready.", None, Delivery(), pause=False, timings=False):
            pass

    def _open(self, path: Path) -> None:
        given = outputs(path)
        self._waveform = given[0] if "waveform" not in given else "waveform"
        self._durations = next((name for name in given if name.startswith("duration")), None)
        inner = None
        if self._durations is None and any(_DURATIONS in node.outputs for node in nodes(path)):
            self._durations = inner = _DURATIONS
        graph_or_path = path if inner is None else with_output(path, inner)
        self._session, self.device, self.device_reason = open_session(graph_or_path, self._threads, self._wanted)

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech]:
        if timings and self._durations is None:
            raise NoTimingsError(f"{self._spec.id} does not tell its timings; espeak-ng does")
        voice = voice or self._voice
        style = self._style(voice)
        language = ESPEAK_VOICES[voice[0]]
        transcript = transcribe(
            sentence,
            self._espeak,
            language,
            tie=TIE,
            convert=lambda ipa: kokoro_symbols(ipa, language),
            timings=timings,
        )
        parts = list(portions(known(transcript, self._ids, _ALIKE), _SYMBOLS)) or [Transcript("", [], [])]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            yield self._speak(part, style, delivery, pause=pause and last, timings=timings)

    def _speak(self, part: Transcript, style: Any, delivery: Delivery, *, pause: bool, timings: bool) -> Speech:
        if is_wordless(part):
            return wordless(_SAMPLE_RATE)
        speed, rest = native_speed(delivery, *_SPEEDS)
        ids = [_PAD, *(self._ids[symbol] for symbol in part.symbols), _PAD]
        feeds = {
            "input_ids": np.array([ids], dtype=np.int64),
            "style": style[len(part.symbols) - 1],
            "speed": np.array([speed], dtype=np.float32),
        }
        names = [self._waveform, *([self._durations] if timings and self._durations else [])]
        waveform, *frames = self._session.run(names, feeds)
        audio, cut = prosody.trim(prosody.to_int16(waveform.reshape(-1)), _SAMPLE_RATE, 0.06, 0.12)
        samples = [float(count) * _HOP for count in frames[0].reshape(-1)] if frames else None
        return finished(
            audio,
            _SAMPLE_RATE,
            delivery,
            rest,
            pause=pause,
            transcript=part,
            durations=samples[1:-1] if samples is not None else None,
            offset=int(samples[0]) - cut if samples is not None else 0,
            name=kokoro_name,
        )

    def _read_style(self, voice: str) -> Any:
        """float32 (510, 1, 256); of several voices joined by `+`, their weighted mean."""
        total, style = 0.0, np.zeros((_SYMBOLS, 1, _STYLE), dtype=np.float32)
        if not blend(voice):
            raise InputError(f"{self._spec.id} has no voice {voice!r}")
        for name, weight in blend(voice):
            path = self._spec.folder / "voices" / f"{name}.bin"
            if name[:1] not in ESPEAK_VOICES or not path.is_file():
                raise InputError(f"{self._spec.id} has no voice {name!r}")
            style += weight * np.fromfile(path, dtype="<f4").reshape(-1, 1, _STYLE)[:_SYMBOLS]
            total += weight
        return style / total
