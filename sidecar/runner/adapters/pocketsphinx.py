"""PocketSphinx with the US English model of its own wheel: speech recognition that needs no download."""

import math
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pocketsphinx

from sidecar.capabilities.asr import Head, Segment, TranscribeOptions, Word
from sidecar.capabilities.vad import FRAME_S, Knobs, find_speech
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import InputError
from sidecar.runner.adapters import Report
from sidecar.runner.adapters.silero import Detector
from sidecar.runner.narrowband import is_narrowband, widen

_SAMPLE_RATE = 16_000
_FRAMES_PER_S = 100
# Pauses from here on divide utterances; what is left longer than the limit is cut where it is quietest.
_KNOBS = Knobs(threshold=0.5, min_speech_ms=100, min_silence_ms=400, speech_pad_ms=200)
_LONGEST_S = 15.0
_LEAST_PROBABILITY = 1e-4


class PocketsphinxAdapter:
    """Finds the speech with Silero, recognises utterance by utterance. It reads no prompt and knows no other task."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "PocketSphinx computes on the CPU"
        self._spec = spec

    def load(self, report: Report) -> None:
        pocketsphinx.set_loglevel("FATAL")
        self._detector = Detector()
        report("recogniser", 1, 2, "steps")
        # Measured on telephone prompts: the second pass (fwdflat) takes a third of the time and gains nothing.
        self._decoder = pocketsphinx.Decoder(pocketsphinx.Config(samprate=float(_SAMPLE_RATE), fwdflat=False))

    def transcribe(self, samples: Any, options: TranscribeOptions) -> Iterator[Head | Segment]:
        """See `Transcriber`. An utterance is recognised within one step, so that streams can take turns."""
        if options["language"] not in (None, "en"):
            raise InputError(
                f"language: model {self._spec.id!r} knows only English ({options['language']!r} was asked for)"
            )
        duration_s = len(samples) / _SAMPLE_RATE
        yield {"language": "en", "language_probability": 1.0, "duration_s": duration_s}
        probabilities, _ = self._detector.probabilities(samples, None)
        narrow = is_narrowband(samples)
        number = 0
        for start_s, end_s in _divide(find_speech(probabilities, duration_s, _KNOBS), probabilities):
            piece = samples[int(start_s * _SAMPLE_RATE) : int(end_s * _SAMPLE_RATE)]
            words = self._recognise(widen(piece) if narrow else piece, start_s)
            if not words:
                continue
            spoken = probabilities[int(start_s / FRAME_S) : math.ceil(end_s / FRAME_S)]
            yield _as_segment(number, words, float(spoken.mean()), options["word_timestamps"])
            number += 1

    def _recognise(self, piece: Any, start_s: float) -> list[Word]:
        decoder = self._decoder
        # Otherwise what was heard before, by anybody, would still colour the noise estimate.
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw((np.clip(piece, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        return [_as_word(found, start_s) for found in decoder.seg() or () if found.word[0] not in "<[+"]


def _as_word(found: Any, start_s: float) -> Word:
    return {
        "word": " " + re.sub(r"\(\d+\)$", "", found.word),
        "start": round(start_s + found.start_frame / _FRAMES_PER_S, 3),
        "end": round(start_s + (found.end_frame + 1) / _FRAMES_PER_S, 3),
        "probability": max(_LEAST_PROBABILITY, min(1.0, float(found.prob))),
    }


def _as_segment(number: int, words: list[Word], spoken: float, with_words: bool) -> Segment:
    text = "".join(word["word"] for word in words)
    packed = text.strip().encode()
    segment: Segment = {
        "id": number,
        "start": words[0]["start"],
        "end": words[-1]["end"],
        "text": text,
        "avg_logprob": sum(math.log(word["probability"]) for word in words) / len(words),
        "no_speech_prob": 1.0 - spoken,
        "compression_ratio": len(packed) / len(zlib.compress(packed)),
        "temperature": 0.0,
        "seek": int(words[0]["start"] * _FRAMES_PER_S),
        "tokens": [],
    }
    if with_words:
        segment["words"] = words
    return segment


def _divide(segments: list[tuple[float, float]], probabilities: Any) -> Iterator[tuple[float, float]]:
    """Cut what is too long for one utterance where speech is least likely, in the second half of the longest length."""
    for start_s, end_s in segments:
        while end_s - start_s > _LONGEST_S:
            first = int((start_s + _LONGEST_S / 2) / FRAME_S)
            last = int((start_s + _LONGEST_S) / FRAME_S)
            cut_s = (first + int(np.argmin(probabilities[first:last])) + 0.5) * FRAME_S
            yield start_s, cut_s
            start_s = cut_s
        yield start_s, end_s
