"""Where an utterance begins and ends, while it is spoken."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from sidecar.capabilities.vad import FRAME_S


class Turn(NamedTuple):
    """Speech begins with frame `frame`, or has ended before it. `forced`: within speech that had become too long."""

    kind: Literal["begin", "end"]
    frame: int
    forced: bool = False


class Endpointer:
    """Fed with the probability of speech of one frame (32 ms) after the other; keeps no sound.

    `min_speech_s` of speech make a beginning, `silence_s` of silence an end. An utterance that reaches `longest_s` is
    ended in the last third of it, where speech is least likely, and the next one begins there.
    """

    def __init__(self, threshold: float, min_speech_s: float, silence_s: float, longest_s: float) -> None:
        self._threshold = threshold
        self._release = max(0.01, threshold - 0.15)
        self._min_speech = max(1, round(min_speech_s / FRAME_S))
        self._silence = max(1, round(silence_s / FRAME_S))
        self._longest = round(longest_s / FRAME_S)
        self._recent: deque[float] = deque(maxlen=max(1, self._longest // 3))
        self._frame = 0
        self._run = 0
        """Frames in a row that speak for a change."""
        self._begun: int | None = None

    @property
    def begun(self) -> int | None:
        """The frame with which the present utterance began."""
        return self._begun

    @property
    def paused(self) -> int | None:
        """The frame with which the present utterance will have ended, unless more of it follows. None in speech."""
        return self._frame - self._run if self._begun is not None and self._run else None

    @property
    def quiet_since(self) -> int:
        """Sound before this frame is not needed for any beginning to come."""
        return self._frame - self._run

    def push(self, probabilities: Sequence[float]) -> Iterator[Turn]:
        """The turns that these frames bring."""
        for probability in probabilities:
            self._recent.append(probability)
            self._frame += 1
            yield from self._silent(probability) if self._begun is None else self._speaking(probability, self._begun)

    def finish(self) -> Iterator[Turn]:
        """No sound follows."""
        if self._begun is not None:
            self._begun, self._run = None, 0
            yield Turn("end", self._frame)

    def _silent(self, probability: float) -> Iterator[Turn]:
        self._run = self._run + 1 if probability >= self._threshold else 0
        if self._run >= self._min_speech:
            self._begun, self._run = self._frame - self._run, 0
            yield Turn("begin", self._begun)

    def _speaking(self, probability: float, begun: int) -> Iterator[Turn]:
        if probability >= self._threshold:
            self._run = 0
        elif self._run or probability < self._release:
            self._run += 1
        if self._run >= self._silence:
            yield Turn("end", self._frame - self._run)
            self._begun, self._run = None, 0
        elif self._frame - begun >= self._longest:
            quietest = min(range(len(self._recent)), key=self._recent.__getitem__)
            cut = self._frame - len(self._recent) + quietest + 1
            yield Turn("end", cut, forced=True)
            self._begun, self._run = cut, 0
            yield Turn("begin", cut, forced=True)
