"""The best path of a recording through what may have been said: Viterbi over phones in their order."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InputError
from sidecar.runner.alignment.features import Floats
from sidecar.runner.alignment.sphinx import SILENCE, STATES, SphinxModel

_IMPOSSIBLE = np.float32(-1e30)
_SILENCE_COST = -2.0
# How far (log likelihood) a path may lie behind the best one where the recording is long. Shorter ones are searched
# in full: a text that does not fit has its best path far behind all the way.
_BEAM = 1500.0
_FULL_CELLS = 60_000_000
_ABOVE_FLOOR_DB = 12.0
_BELOW_PEAK_DB = 35.0
_WIDEST = 15


class Node(NamedTuple):
    """One phone at one place: the word's number (−1 between words), and the nodes before it (−1 is the beginning)."""

    phone: int
    word: int
    before: tuple[int, ...]


class Segment(NamedTuple):
    """Frames `start` to `end` (exclusive) of the recording belong to this phone."""

    phone: int
    word: int
    start: int
    end: int


class Graph:
    """Words in their order, each with one or more pronunciations; silence may lie before, between and after them."""

    def __init__(self, model: SphinxModel, words: Sequence[Iterable[Sequence[str]]]) -> None:
        self._model = model
        self.nodes: list[Node] = []
        self._silence = model.index[SILENCE]
        ends = self._pause((-1,))
        for number, pronunciations in enumerate(words):
            last: list[int] = []
            for phones in pronunciations:
                before = ends
                for phone in phones:
                    before = self._add(model.index[phone], number, before)
                last += before
            ends = self._pause(tuple(last))
        self.ends = ends
        self.fewest_frames = STATES * sum(min(map(len, pronunciations)) for pronunciations in words)

    def _add(self, phone: int, word: int, before: tuple[int, ...]) -> tuple[int, ...]:
        self.nodes.append(Node(phone, word, before))
        return (len(self.nodes) - 1,)

    def _pause(self, ends: tuple[int, ...]) -> tuple[int, ...]:
        return (*ends, *self._add(self._silence, -1, ends))

    def best_path(self, scores: Floats) -> list[Segment]:
        """The segments of the best path. `scores` is (frames, phones × 3), at least `fewest_frames` long.

        Raises InputError where a long text is so far from its recording that no path was followed to the end.
        """
        table = self._table()
        beam = math.inf if len(scores) * len(table[0]) <= _FULL_CELLS else _BEAM
        states = _Trellis(scores, *table, beam).run([node * STATES + STATES - 1 for node in self.ends])
        nodes = states // STATES
        borders = [0, *(np.flatnonzero(np.diff(nodes)) + 1).tolist(), len(nodes)]
        return [
            Segment(self.nodes[nodes[start]].phone, self.nodes[nodes[start]].word, start, end)
            for start, end in itertools.pairwise(borders)
        ]

    def _table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
        """Columns of the scores (states), predecessors (states, most + 1) and their transitions, entries (states).

        A state's first predecessor is itself. Places without a predecessor name one past the last state.
        """
        count = len(self.nodes) * STATES
        width = 1 + max(max(len(node.before) for node in self.nodes), 1)
        before = np.full((count, width), count, np.int64)
        transitions = np.full((count, width), _IMPOSSIBLE, np.float32)
        entries = np.full(count, _IMPOSSIBLE, np.float32)
        stay, leave = self._model.log_stay, self._model.log_leave
        for number, node in enumerate(self.nodes):
            for state in range(STATES):
                row = number * STATES + state
                before[row, 0], transitions[row, 0] = row, stay[node.phone, state]
                if state:
                    before[row, 1], transitions[row, 1] = row - 1, leave[node.phone, state - 1]
            first = number * STATES
            cost = _SILENCE_COST if node.phone == self._silence else 0.0
            for place, other in enumerate(node.before, 1):
                if other < 0:
                    entries[first] = cost
                else:
                    before[first, place] = other * STATES + STATES - 1
                    transitions[first, place] = leave[self.nodes[other].phone, STATES - 1] + cost
        phones = np.array([node.phone for node in self.nodes])
        columns = (phones[:, None] * STATES + np.arange(STATES)).reshape(-1)
        return columns, before, transitions, entries


def widen(segments: Sequence[Segment], levels: Floats, silence: int) -> list[Segment]:
    """Words take from the silences beside them what is too loud for one, `levels` being dB per frame.

    The model hears weak beginnings and ends, those of fricatives on the telephone above all, as silence.
    """
    threshold = max(np.percentile(levels, 5) + _ABOVE_FLOOR_DB, levels.max() - _BELOW_PEAK_DB)
    widened = list(segments)
    for number, segment in enumerate(segments):
        if segment.phone != silence or segment.word >= 0:
            continue
        start, end = segment.start, segment.end
        if number + 1 < len(segments):
            earliest = max(start, end - _WIDEST)
            while end > earliest and levels[end - 1] > threshold:
                end -= 1
            widened[number + 1] = widened[number + 1]._replace(start=end)
        if number > 0:
            latest = min(end, start + _WIDEST)
            while start < latest and levels[start] > threshold:
                start += 1
            widened[number - 1] = widened[number - 1]._replace(end=start)
        widened[number] = segment._replace(start=start, end=end)
    return widened


class _Trellis:
    """One run over the frames. Only a window of states is looked at: those near the best path, and what they reach."""

    def __init__(
        self,
        scores: Floats,
        columns: NDArray[np.int64],
        before: NDArray[np.int64],
        transitions: Floats,
        entries: Floats,
        beam: float,
    ) -> None:
        self._beam = beam
        self._scores = scores
        self._columns = columns
        self._before = before
        self._transitions = transitions
        count = len(columns)
        self._values = np.append(entries + scores[0, columns], _IMPOSSIBLE).astype(np.float32)
        reach = np.arange(count)
        for place in range(before.shape[1]):
            known = before[:, place] < count
            np.maximum.at(reach, before[known, place], np.flatnonzero(known))
        self._reach = np.maximum.accumulate(reach)
        self._back: list[tuple[int, NDArray[np.uint8]]] = []

    def run(self, ends: Sequence[int]) -> NDArray[np.int64]:
        """The state of every frame, on the best path that ends in one of `ends`."""
        low, high = 0, len(self._columns)
        for frame in range(len(self._scores)):
            if frame:
                self._step(frame, low, high)
            low, high = self._window(low, high)
        state = max(ends, key=lambda end: self._values[end])
        if self._values[state] <= _IMPOSSIBLE / 2:
            raise InputError("the text does not match this long recording: align it in shorter pieces")
        path = np.empty(len(self._scores), np.int64)
        for frame in range(len(path) - 1, -1, -1):
            path[frame] = state
            if frame:
                first, choices = self._back[frame - 1]
                state = self._before[state, choices[state - first]]
        return path

    def _step(self, frame: int, low: int, high: int) -> None:
        paths = self._values[self._before[low:high]]
        paths += self._transitions[low:high]
        choices = paths.argmax(axis=1)
        self._back.append((low, choices.astype(np.uint8)))
        best = np.take_along_axis(paths, choices[:, None], axis=1)[:, 0]
        self._values[low:high] = best + self._scores[frame, self._columns[low:high]]

    def _window(self, low: int, high: int) -> tuple[int, int]:
        """The next frame's states; what falls out at either end becomes impossible."""
        values = self._values[low:high]
        alive = np.flatnonzero(values > max(values.max() - self._beam, _IMPOSSIBLE / 2))
        next_low, last = low + int(alive[0]), low + int(alive[-1])
        self._values[low:next_low] = _IMPOSSIBLE
        self._values[last + 1 : high] = _IMPOSSIBLE
        return next_low, int(self._reach[last]) + 1
