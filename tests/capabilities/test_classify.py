from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.capabilities.base import Meta
from sidecar.capabilities.classify import Classify, ClassifyBatchRequest, ClassifyRequest

CLASSIFY = Classify()
LABELS = ("praise", "complaint", "question")


class Logits:
    """An adapter with known logits."""

    def __init__(self, logits: Any, multi_label: bool = False, threshold: float | None = None) -> None:
        self._logits = np.array(logits, dtype=np.float32)
        self._decision = (multi_label, threshold)

    def labels(self, head: str) -> tuple[str, ...]:
        assert head == "classify"
        return LABELS

    def decision(self, head: str) -> tuple[bool, float | None]:
        return self._decision

    def classify(self, texts: Any, head: str) -> Any:
        return self._logits[: len(texts)]


def answer(adapter: Logits, **request: Any) -> Any:
    output = CLASSIFY.run_batch(adapter, ["a"])[0]
    return CLASSIFY.finish(list(output), Meta("m", 2.0, ClassifyRequest(text="a", **request)))


def test_one_label_of_a_softmax() -> None:
    response = answer(Logits([[0, 2, 1]]))
    assert response.labels == ["complaint"]
    assert [score["label"] for score in response.scores] == ["complaint", "question", "praise"]
    assert sum(score["score"] for score in response.scores) == pytest.approx(1)
    assert (response.model, response.processing_time_ms, response.multi_label) == ("m", 2.0, False)


def test_several_labels_of_sigmoids() -> None:
    response = answer(Logits([[-3, 2, 1]], multi_label=True, threshold=0.5))
    assert response.labels == ["complaint", "question"] and response.multi_label
    assert response.scores[0]["score"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert answer(Logits([[-3, -2, -1]], multi_label=True, threshold=0.5)).labels == []


def test_the_threshold_is_strict_and_the_request_may_set_it() -> None:
    assert answer(Logits([[0, 0, 0]], multi_label=True, threshold=0.5)).labels == []
    assert answer(Logits([[0, 2, 1]], threshold=0.9)).labels == []
    changed = answer(Logits([[0, 2, 1]], threshold=0.9), threshold=0.1)
    assert changed.labels == ["complaint"] and changed.threshold == 0.1
    assert answer(Logits([[0, 2, 1]], multi_label=True, threshold=0.5), threshold=0.2).labels == [
        "complaint",
        "question",
        "praise",
    ]


def test_extreme_logits_are_finite() -> None:
    for multi_label in (False, True):
        scores = answer(Logits([[1e30, -1e30, 0]], multi_label, 0.5)).scores
        assert all(np.isfinite(score["score"]) for score in scores) and scores[0]["score"] == 1.0


def test_a_batch_takes_texts_and_pairs() -> None:
    endpoint = CLASSIFY.endpoints[1]
    items: list[Any] = ["plain", {"text": "a", "text_pair": "b", "model": "other"}]
    batch = ClassifyBatchRequest(texts=items, model="path", threshold=0.3)
    parts = endpoint.split(batch)
    assert [CLASSIFY.prepare(part) for part in parts] == ["plain", ("a", "b")]
    assert {(part.model, part.threshold) for part in parts} == {("path", 0.3)}
    with pytest.raises(ValidationError):
        ClassifyBatchRequest(texts=["x"] * 257)


def test_a_huge_text_does_not_cross_the_wire_whole() -> None:
    assert len(CLASSIFY.prepare(ClassifyRequest(text="word " * 100_000))) < 40_000
    assert CLASSIFY.cost(("x" * 5000, "y" * 5000)) == 512
