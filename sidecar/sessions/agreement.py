"""Partial transcripts that settle: what two transcriptions in a row agree on is not taken back.

LocalAgreement-2. Source: Macháček, Dabre and Bojar, Turning Whisper into Real-Time Transcription System (IJCNLP-AACL
2023, system demonstrations), there for a growing buffer of sound; here the buffer is one utterance.
"""

import re
from collections.abc import Sequence

from sidecar.capabilities.asr import Word

# By how much the times of a word differ between two transcriptions; what overlaps less is another word (s).
_MOVES_S = 0.1
_OVERLAPS_S = 0.05
_OVERLAP_WORDS = 5


class Agreement:
    """Words of one utterance. `settled` only grows; `pending` are those that one transcription alone has."""

    def __init__(self) -> None:
        self.settled: list[Word] = []
        self.pending: list[Word] = []

    @property
    def text(self) -> str:
        """All of it."""
        return _joined([*self.settled, *self.pending])

    @property
    def settled_text(self) -> str:
        return _joined(self.settled)

    def update(self, words: Sequence[Word]) -> None:
        """Another transcription of the utterance from its beginning, which may meanwhile be longer."""
        fresh = self._fresh(words)
        agreed = 0
        for word, before in zip(fresh, self.pending, strict=False):
            if _plain(word) != _plain(before):
                break
            agreed += 1
        self.settled += fresh[:agreed]
        self.pending = fresh[agreed:]

    def finish(self, words: Sequence[Word]) -> None:
        """The last transcription: everything settles."""
        self.settled += self._fresh(words)
        self.pending = []

    def _fresh(self, words: Sequence[Word]) -> list[Word]:
        """Words behind the settled ones. Times of a word move a little from one transcription to the next, so that one
        may come again: then its text tells."""
        if not self.settled:
            return list(words)
        end_s = self.settled[-1]["end"]
        fresh = [word for word in words if (word["start"] + word["end"]) / 2 > end_s - _MOVES_S]
        for count in range(min(_OVERLAP_WORDS, len(fresh), len(self.settled)), 0, -1):
            again = list(map(_plain, fresh[:count])) == list(map(_plain, self.settled[-count:]))
            if again and fresh[0]["start"] < end_s - _OVERLAPS_S:
                return fresh[count:]
        return fresh


def _plain(word: Word) -> str:
    return re.sub(r"\W+", "", word["word"]).lower()


def _joined(words: Sequence[Word]) -> str:
    return "".join(word["word"] for word in words).strip()
