"""Piper voices: VITS exported to ONNX with a JSON beside it, one symbol of IPA after the other.

Inputs of the graph: input int64 (1, ids), input_lengths int64 (1), scales float32 (3) = noise, length, noise of the
durations, and sid int64 (1) where there is more than one speaker. Output: float32 (1, 1, 1, samples).
"""

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.errors import InputError, ModelLoadError, NoTimingsError
from sidecar.runner import prosody
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.delivery import finished, native_speed, wordless
from sidecar.runner.espeak import library
from sidecar.runner.graph import nodes, outputs, with_output
from sidecar.runner.session import graph_of, open_session
from sidecar.runner.transcript import NO_WORD, Transcript, is_wordless, known, transcribe

_PAD, _BEGIN, _END = "_", "^", "$"
# What eSpeak's clauses end with, and so all the punctuation that these voices were taught.
_ALIKE = {"…": ".", "—": ",", "–": ",", "。": ".", "，": ",", "、": ",", "！": "!", "？": "?", "；": ";", "：": ":"}
_HOP = 256
_QUIETEST = 0.01
_SPEEDS = (0.4, 2.5)
"""What VITS says intelligibly; the rest is stretched."""


class PiperAdapter(BaseAdapter):
    """A voice is `<name>.onnx` with `<name>.onnx.json` beside it; its speakers are the model's voices."""

    sentence_limit = 400

    def load(self, report: Report) -> None:
        path = graph_of(self._spec)
        self._read_config(json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8")))
        self._espeak = library()
        # The one rounding up in VITS is that of the durations, in frames.
        rounded = [name for node in nodes(path) if node.op_type == "Ceil" for name in node.outputs]
        self._durations = rounded[0] if len(rounded) == 1 else None
        inner = None if self._durations in outputs(path) else self._durations
        graph_or_path = path if inner is None else with_output(path, inner)
        self._session, self.device, self.device_reason = open_session(graph_or_path, self._threads, self._wanted)
        self._waveform = self._session.get_outputs()[0].name
        self._takes_speaker = "sid" in {node.name for node in self._session.get_inputs()}
        for _ in self.speak("Ready.", None, Delivery(), pause=False, timings=False):
            pass

    def _read_config(self, config: dict[str, Any]) -> None:
        kind = config.get("phoneme_type", "espeak")
        if kind not in ("espeak", "text"):
            raise ModelLoadError(f"{self._spec.id} reads {kind!r}; voices that read eSpeak phonemes or text are known")
        self._reads_text = kind == "text"
        self._ids: dict[str, list[int]] = config["phoneme_id_map"]
        self._language = str(config.get("espeak", {}).get("voice", "en-us"))
        self._speakers: dict[str, int] = config.get("speaker_id_map") or {}
        self._hop = int(config.get("hop_length", _HOP))
        inference = config.get("inference", {})
        self._noise = float(inference.get("noise_scale", 0.667))
        self._length = float(inference.get("length_scale", 1.0))
        self._noise_of_durations = float(inference.get("noise_w", 0.8))
        self.sample_rate = int(config["audio"]["sample_rate"])

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech]:
        if timings and self._durations is None:
            raise NoTimingsError(f"{self._spec.id} does not tell its timings; espeak-ng does")
        transcript = self._transcript(sentence, timings)
        if is_wordless(transcript):
            yield wordless(self.sample_rate)
            return
        speed, rest = native_speed(delivery, *_SPEEDS)
        audio, frames = self._run(self._encode(transcript), self._speaker(voice), self._length / speed)
        lasting = [*_per_symbol(transcript, self._ids, frames, self._hop)] if timings else None
        first = int(frames[: self._symbols_begin()].sum()) * self._hop if timings else 0
        yield finished(
            audio,
            self.sample_rate,
            delivery,
            rest,
            pause=pause,
            transcript=transcript,
            durations=lasting,
            offset=first,
        )

    def _transcript(self, sentence: str, timings: bool) -> Transcript:
        if self._reads_text:
            return known(_letters(sentence), self._ids, _ALIKE)
        transcript = transcribe(sentence, self._espeak, self._language, convert=_decomposed, timings=timings)
        symbols, owners, words = known(transcript, self._ids, _ALIKE)
        if not symbols.rstrip().endswith((".", "?", "!")) and "." in self._ids:
            symbols, owners = symbols.rstrip() + ".", [*owners[: len(symbols.rstrip())], NO_WORD]
        return Transcript(symbols, owners, words)

    def _encode(self, transcript: Transcript) -> list[int]:
        pad = self._ids[_PAD]
        ids = [*self._ids[_BEGIN], *pad]
        for symbol in transcript.symbols:
            ids += [*self._ids[symbol], *pad]
        return [*ids, *self._ids[_END]]

    def _symbols_begin(self) -> int:
        return len(self._ids[_BEGIN]) + len(self._ids[_PAD])

    def _run(self, ids: list[int], speaker: int, length: float) -> tuple[Any, Any]:
        """int16 audio, and the frames of every id (of no use where the graph does not tell them)."""
        feeds = {
            "input": np.array([ids], dtype=np.int64),
            "input_lengths": np.array([len(ids)], dtype=np.int64),
            "scales": np.array([self._noise, length, self._noise_of_durations], dtype=np.float32),
        }
        if self._takes_speaker:
            feeds["sid"] = np.array([speaker], dtype=np.int64)
        names = [self._waveform, *([self._durations] if self._durations else [])]
        audio, *rest = self._session.run(names, feeds)
        audio = audio.reshape(-1)
        # As Piper itself does it: every sentence as loud as the format allows.
        audio = audio / max(_QUIETEST, float(np.abs(audio).max(initial=0.0)))
        return prosody.to_int16(audio), rest[-1].reshape(-1) if rest else np.zeros(len(ids))

    def _speaker(self, voice: str | None) -> int:
        """`voice` is `<name>#<speaker>`, or the speaker alone."""
        if voice is None or ("#" not in voice and voice not in self._speakers):
            return 0
        speaker = voice.rsplit("#", 1)[-1]
        if speaker not in self._speakers:
            raise InputError(f"{self._spec.id} has no speaker {speaker!r}")
        return self._speakers[speaker]


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _letters(sentence: str) -> Transcript:
    """For voices that read letters: each is a symbol of its word."""
    words = sentence.split()
    symbols = [letter for index, word in enumerate(words) for letter in [" "] * bool(index) + [*_decomposed(word)]]
    owners: list[int] = []
    for index, word in enumerate(words):
        owners += [NO_WORD] * bool(index) + [index] * len(_decomposed(word))
    return Transcript("".join(symbols), owners, words)


def _per_symbol(transcript: Transcript, ids: dict[str, list[int]], frames: Any, hop: int) -> Iterator[int]:
    """Samples of each symbol with the padding after it."""
    pad = len(ids[_PAD])
    position = len(ids[_BEGIN]) + pad
    for symbol in transcript.symbols:
        count = len(ids[symbol]) + pad
        yield int(frames[position : position + count].sum()) * hop
        position += count
