"""What models are judged by: sentences of everyday English, some alone, some as longer texts.

sentences.txt was written for this project (models/build/data has more of it) and is Apache-2.0 like the rest.
"""

from pathlib import Path
from typing import NamedTuple

from sidecar.errors import ConfigError

SENTENCES = Path(__file__).with_name("sentences.txt")
LEAST_TEXTS = 500
# One in five is for calibration and judges nothing.
EVERY = 5
# Every so many texts one is a paragraph, so that long inputs count, too.
LONG_EVERY = 12
LONGEST = 8


class Texts(NamedTuple):
    """Disjoint: what int8 is fitted to, and what it is then judged by."""

    calibration: list[str]
    judged: list[str]


def read(path: Path | None = None) -> Texts:
    """Ours, or those of a file with one text a line. Raises ConfigError where it has too few to tell anything."""
    source = path or SENTENCES
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"texts {source}: {error}") from None
    texts = list(dict.fromkeys(lines)) if path else _with_paragraphs(lines)
    split = Texts(texts[::EVERY], [text for number, text in enumerate(texts) if number % EVERY])
    if len(split.judged) < LEAST_TEXTS:
        raise ConfigError(
            f"texts {source}: {len(texts)} are too few; {LEAST_TEXTS * EVERY // (EVERY - 1)} different ones are needed"
        )
    return split


def _with_paragraphs(lines: list[str]) -> list[str]:
    """Some lines become paragraphs of two to eight of those that follow."""
    texts = list(lines)
    for number in range(0, len(lines) - LONGEST, LONG_EVERY):
        count = 2 + number // LONG_EVERY % (LONGEST - 1)
        texts[number] = " ".join(lines[number : number + count])
    return texts
