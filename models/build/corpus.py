"""The written sentences: reading, removing what is too near the held-out files, and the dev split."""

import csv
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
DEV_SHARE = 0.12
SPLIT_SEED = 20250
NEAR_COPY = 0.6  # Jaccard similarity of the word sets


@dataclass(frozen=True)
class Example:
    """One labelled text; `first` is the previous utterance (backchannel) or None (emotion)."""

    text: str
    label: int
    first: str | None = None


@dataclass(frozen=True)
class Split:
    """Training and dev examples of one task, and how many lines were dropped as near copies of a test line."""

    train: list[Example]
    dev: list[Example]
    dropped: int


def read_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}:{number}: wrong number of columns")
    return rows


def emotion_examples() -> list[Example]:
    found = []
    for label, name in enumerate(EMOTIONS):
        for path in sorted(DATA.glob(f"emotion_{name}*.txt")):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [Example(line.strip(), label) for line in lines if line.strip()]
    for path in sorted(DATA.glob("emotion_hard*.tsv")):
        found += [Example(row["text"].strip(), EMOTIONS.index(row["label"])) for row in read_tsv(path)]
    return found


def emotion_extra() -> list[Example]:
    """Written after a look at the dev errors, hence for training alone: the dev split stays what it was."""
    rows = read_tsv(DATA / "emotion_extra.tsv")
    return [Example(row["text"].strip(), EMOTIONS.index(row["label"])) for row in rows]


def emotion_test() -> list[Example]:
    rows = read_tsv(DATA / "emotion_test.tsv")
    return [Example(row["text"].strip(), EMOTIONS.index(row["label"])) for row in rows]


def _pairs(path: Path) -> list[Example]:
    return [Example(row["utterance"].strip(), int(row["label"]), row["previous"].strip()) for row in read_tsv(path)]


def backchannel_examples() -> list[Example]:
    return [pair for path in sorted(DATA.glob("backchannel*.tsv")) if "_test" not in path.name for pair in _pairs(path)]


def backchannel_test() -> list[Example]:
    return _pairs(DATA / "backchannel_test.tsv")


def words(example: Example) -> frozenset[str]:
    """The words of both segments; a pair is a near copy only if both segments together are."""
    joined = f"{example.first or ''} {example.text}".lower().replace("’", "'")
    return frozenset(re.findall(r"[\w']+", joined)) or frozenset({joined.strip()})


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def without_near_copies(examples: list[Example], test: list[Example]) -> list[Example]:
    """Drops every example that shares NEAR_COPY of its words with a test line, and exact repeats."""
    test_words = [words(example) for example in test]
    kept: dict[tuple[str, str], Example] = {}
    for example in examples:
        mine = words(example)
        if all(similarity(mine, other) < NEAR_COPY for other in test_words):
            kept.setdefault((example.first or "", example.text.lower()), example)
    return list(kept.values())


def split(examples: list[Example], test: list[Example], extra: list[Example] | None = None) -> Split:
    """Stratified by label, with a fixed seed; near copies of a dev line leave the training part too.

    `extra` goes to the training part only.
    """
    clean = without_near_copies(examples, test)
    by_label: dict[int, list[Example]] = defaultdict(list)
    for example in clean:
        by_label[example.label].append(example)
    chooser = random.Random(SPLIT_SEED)
    train: list[Example] = []
    dev: list[Example] = []
    for label in sorted(by_label):
        group = by_label[label]
        chooser.shuffle(group)
        cut = round(len(group) * DEV_SHARE)
        dev += group[:cut]
        train += group[cut:]
    more = without_near_copies(extra or [], test)
    dropped = len(examples) + len(extra or []) - len(clean) - len(more)
    return Split(without_near_copies(train + more, dev), dev, dropped)
