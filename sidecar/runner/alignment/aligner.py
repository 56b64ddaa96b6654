"""Forced alignment: when each phone of a known text is said in a recording, and how sure that is."""

import itertools
import math
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from sidecar.errors import InputError
from sidecar.runner.alignment.features import FRAME_S, SAMPLE_RATE, SHIFT, Floats, features, loudness
from sidecar.runner.alignment.pronunciation import Lexicon, Word
from sidecar.runner.alignment.search import Graph, Segment, widen
from sidecar.runner.alignment.sphinx import SILENCE, STATES, SphinxModel
from sidecar.runner.narrowband import is_narrowband
from sidecar.runner.narrowband import widen as widen_band


class _Scale(NamedTuple):
    """Evidence to the probability that the text is the right one."""

    slope: float
    middle: float

    def __call__(self, evidence: float) -> float:
        return 1 / (1 + math.exp(min(self.slope * (self.middle - evidence), 500.0)))


# Evidence is by how much, per frame, a phone's log likelihood is above that of the best other phone; that of a word or
# text is the mean of its phones. Logistic regression over 9,000 phones of right texts and as many of wrong ones, of
# eSpeak NG, flite and recorded telephone prompts, each third of equal weight.
_OF_PHONE = _Scale(0.41, -3.25)
_OF_WORD = _Scale(1.0, -3.3)
_OF_TEXT = _Scale(2.5, -3.8)


class Phone(NamedTuple):
    """ARPABET with stress; times in seconds; confidence 0 to 1."""

    name: str
    start_s: float
    end_s: float
    confidence: float


class AlignedWord(NamedTuple):
    """A word as written, and its phones in order: there is at least one."""

    text: str
    confidence: float
    phones: list[Phone]


class Alignment(NamedTuple):
    """Confidences, 0 to 1, say how probable it is that this was said there: the whole text's is the surest."""

    words: list[AlignedWord]
    confidence: float


class Aligner:
    """Reads its model at construction; raises ModelLoadError. Safe for several threads."""

    def __init__(self, acoustic_model: Path, dictionary: Path) -> None:
        self._model = SphinxModel(acoustic_model)
        self._lexicon = Lexicon(dictionary)

    def align(self, samples: Floats, text: str) -> Alignment:
        """`samples`: float32 mono 16 kHz. Raises InputError if the text cannot be said, or not in so short a time."""
        words = self._lexicon.words(text)
        if not words:
            raise InputError("text: there is nothing in it that can be spoken")
        plain = [[_unstressed(phones) for phones in word.pronunciations] for word in words]
        graph = Graph(self._model, plain)
        if len(samples) // SHIFT < graph.fewest_frames:
            raise InputError(
                f"the text takes {graph.fewest_frames * FRAME_S:.2f} s or more to say; the audio has"
                f" {len(samples) / SAMPLE_RATE:.2f} s"
            )
        # Measured on telephone prompts: right texts are surer (a twentieth of them below 0.94 instead of 0.71).
        heard = widen_band(samples) if is_narrowband(samples) else samples
        scores = self._model.scores(features(heard))
        segments = graph.best_path(scores)
        frames = _evidence(scores)
        evidence = [float(frames[each.start : each.end, each.phone].mean()) for each in segments]
        widened = widen(segments, loudness(samples), self._model.index[SILENCE])
        return self._alignment(words, widened, evidence)

    def _alignment(self, words: list[Word], segments: list[Segment], evidence: list[float]) -> Alignment:
        found = [(segment, mean) for segment, mean in zip(segments, evidence, strict=True) if segment.word >= 0]
        aligned = []
        for number, own in itertools.groupby(found, key=lambda each: each[0].word):
            mine = list(own)
            spoken = [self._model.phones[segment.phone] for segment, _ in mine]
            chosen = next(each for each in words[number].pronunciations if _unstressed(each) == spoken)
            phones = [
                Phone(name, segment.start * FRAME_S, segment.end * FRAME_S, _OF_PHONE(mean))
                for name, (segment, mean) in zip(chosen, mine, strict=True)
            ]
            aligned.append(AlignedWord(words[number].text, _OF_WORD(fmean(mean for _, mean in mine)), phones))
        return Alignment(aligned, _OF_TEXT(fmean(mean for _, mean in found)))


def _evidence(scores: Floats) -> Floats:
    """(frames, phones): each phone's best state against the best state of all others."""
    best = scores.reshape(len(scores), -1, STATES).max(axis=2)
    two = np.partition(best, -2, axis=1)[:, -2:]
    others = np.where(best == two[:, 1:], two[:, :1], two[:, 1:])
    return np.asarray(best - others)


def _unstressed(phones: tuple[str, ...]) -> list[str]:
    return [phone.rstrip("012") for phone in phones]
