"""Viterbi over a graph of phones, with scores made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pocketsphinx
import pytest

from sidecar.errors import InputError
from sidecar.runner.alignment import search
from sidecar.runner.alignment.search import Graph, Segment, widen
from sidecar.runner.alignment.sphinx import SILENCE, STATES, SphinxModel


@pytest.fixture(scope="module")
def model() -> SphinxModel:
    return SphinxModel(Path(pocketsphinx.get_model_path("en-us/en-us")))


def heard(model: SphinxModel, *runs: tuple[str, int]) -> Any:
    """Scores of a recording in which exactly these phones are heard, each for that many frames."""
    rows = []
    for phone, frames in runs:
        row = np.full(len(model.phones) * STATES, -50.0, np.float32)
        row[model.index[phone] * STATES : model.index[phone] * STATES + STATES] = 0
        rows += [row] * frames
    return np.array(rows)


def names(model: SphinxModel, segments: list[Segment]) -> list[tuple[str, int, int, int]]:
    return [(model.phones[each.phone], each.word, each.start, each.end) for each in segments]


def test_phones_are_found_where_they_are(model: SphinxModel) -> None:
    graph = Graph(model, [[["HH", "AY"]], [["DH", "EH", "R"]]])
    scores = heard(model, ("SIL", 10), ("HH", 5), ("AY", 8), ("SIL", 6), ("DH", 4), ("EH", 7), ("R", 3), ("SIL", 9))
    assert names(model, graph.best_path(scores)) == [
        ("SIL", -1, 0, 10), ("HH", 0, 10, 15), ("AY", 0, 15, 23), ("SIL", -1, 23, 29),
        ("DH", 1, 29, 33), ("EH", 1, 33, 40), ("R", 1, 40, 43), ("SIL", -1, 43, 52),
    ]  # fmt: skip


def test_silence_need_not_be_there(model: SphinxModel) -> None:
    graph = Graph(model, [[["HH", "AY"]]])
    assert names(model, graph.best_path(heard(model, ("HH", 4), ("AY", 4)))) == [("HH", 0, 0, 4), ("AY", 0, 4, 8)]


def test_the_pronunciation_that_was_used_is_chosen(model: SphinxModel) -> None:
    graph = Graph(model, [[["R", "EH", "D"], ["R", "IY", "D"]]])
    found = graph.best_path(heard(model, ("R", 5), ("IY", 5), ("D", 5)))
    assert [name for name, *_ in names(model, found)] == ["R", "IY", "D"]


def test_the_same_phone_twice_in_a_row_is_two(model: SphinxModel) -> None:
    graph = Graph(model, [[["B", "AH", "S"]], [["S", "T"]]])
    found = names(model, graph.best_path(heard(model, ("B", 3), ("AH", 3), ("S", 12), ("T", 3))))
    assert [(name, word) for name, word, *_ in found] == [("B", 0), ("AH", 0), ("S", 0), ("S", 1), ("T", 1)]


def test_the_narrowed_search_finds_the_same(model: SphinxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [[["HH", "AY"]], [["DH", "EH", "R"]], [["M", "AE", "N"]]] * 30
    runs = [(phone, 5) for word in words for phone in word[0]]
    scores = heard(model, *runs) + np.random.default_rng(0).normal(0, 5, (5 * len(runs), 126)).astype(np.float32)
    whole = Graph(model, words).best_path(scores)
    monkeypatch.setattr(search, "_FULL_CELLS", 0)
    assert Graph(model, words).best_path(scores) == whole


def test_a_narrowed_search_that_loses_every_path_says_so(model: SphinxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_FULL_CELLS", 0)
    monkeypatch.setattr(search, "_BEAM", 20.0)
    with pytest.raises(InputError, match="shorter pieces"):
        Graph(model, [[["HH", "AY"]], [["DH", "EH", "R"]]]).best_path(heard(model, ("SIL", 30)))


def test_words_take_what_is_loud_from_the_silence_beside_them(model: SphinxModel) -> None:
    silence = model.index[SILENCE]
    segments = [Segment(silence, -1, 0, 40), Segment(model.index["S"], 0, 40, 60), Segment(silence, -1, 60, 100)]
    levels = np.full(100, -80.0, np.float32)
    levels[30:70] = -30
    assert [(each.start, each.end) for each in widen(segments, levels, silence)] == [(0, 30), (30, 70), (70, 100)]
    levels[:] = -30  # loud throughout: no more than 150 ms are taken
    levels[:6] = -80
    assert [(each.start, each.end) for each in widen(segments, levels, silence)] == [(0, 25), (25, 75), (75, 100)]
