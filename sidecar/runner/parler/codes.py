"""From logits to frames of codes: the delayed rows, where an utterance ends, and how a code is drawn."""

import math
from collections.abc import Iterator
from typing import Any

from sidecar.runner.parler.checkpoint import Drawing


class Utterance:
    """Columns of one code a codebook. Row n is n columns late, so frame t lies on a diagonal that begins at t + 1.

    Row n may end only after the row before it has, and an ended row goes on with padding.
    """

    def __init__(self, drawing: Drawing, codebooks: int) -> None:
        self._drawing = drawing
        self._count = codebooks
        self._columns = [[drawing.start] * codebooks]
        self._ended = [False] * codebooks
        self._open = 0
        self._given = 0

    @property
    def over(self) -> bool:
        """Whether nothing more is to be drawn."""
        return all(self._ended) or len(self._columns) >= self._drawing.longest

    def endless(self) -> list[int]:
        """Rows in which the end must not be drawn next. To be asked once for every column."""
        if self._open < self._count - 1 and self._ended[self._open]:
            self._open += 1
        early = len(self._columns) - 1 < self._drawing.shortest
        return list(range(0 if early else self._open + 1, self._count))

    def add(self, drawn: list[int]) -> list[int]:
        """Take the next column; returns it as the decoder is to read it."""
        drawing, place = self._drawing, len(self._columns)
        column = [drawing.pad if ended else code for code, ended in zip(drawn, self._ended, strict=True)]
        self._ended = [ended or code == drawing.end for code, ended in zip(column, self._ended, strict=True)]
        self._columns.append(column)
        # After the last frame that fits there is padding, on the same diagonal.
        last = drawing.longest - self._count
        return [
            drawing.begin if place <= row else drawing.pad if place - row > last else code
            for row, code in enumerate(column)
        ]

    def frames(self, codes: int) -> Iterator[list[int]]:
        """Those that have become complete; what holds a code that is no sound (the end, padding) is left out."""
        for frame in range(self._given, len(self._columns) - self._count):
            self._given += 1
            found = [self._columns[frame + 1 + row][row] for row in range(self._count)]
            if max(found) < codes:
                yield found


def draw(torch: Any, logits: Any, drawing: Drawing, endless: list[int], source: Any) -> list[int]:
    """The next column. `logits` (codebooks, vocabulary) is float32 and is changed; `source` is torch's generator."""
    logits[endless, drawing.end] = -math.inf
    if not drawing.sampled:
        return [int(code) for code in logits.argmax(dim=-1)]
    logits = logits / drawing.temperature
    if 0 < drawing.top_k < logits.shape[-1]:
        least = logits.topk(drawing.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if drawing.top_p < 1:
        ordered, places = logits.sort(dim=-1)
        unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - drawing.top_p
        unlikely[:, -1] = False
        logits = logits.masked_fill(unlikely.scatter(1, places, unlikely), -math.inf)
    drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=source)
    return [int(code) for code in drawn[:, 0]]
