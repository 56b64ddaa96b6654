from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.capabilities.backchannel import Backchannel, BackchannelBatchRequest, BackchannelRequest, Latencies
from sidecar.capabilities.base import Meta


class Logits:
    """An adapter that gives known logits, and remembers what it was given."""

    def __init__(self, logits: Any, labels: tuple[str, ...] = ("other", "backchannel")) -> None:
        self._logits = np.array(logits, dtype=np.float32)
        self._labels = labels
        self.texts: list[Any] = []

    def labels(self, head: str) -> tuple[str, ...]:
        assert head == "backchannel"
        return self._labels

    def decision(self, head: str) -> tuple[bool, float | None]:
        return False, None

    def classify(self, texts: Any, head: str) -> Any:
        self.texts += texts
        return self._logits[: len(texts)]


def answer(capability: Backchannel, probability: float, **request: Any) -> Any:
    asked = BackchannelRequest(utterance="mm-hm", **request)
    return capability.finish(probability, Meta("m", 1.5, asked))


def test_the_decision_is_strict_and_confidence_is_that_of_the_decision() -> None:
    capability = Backchannel()
    capability.threshold = 0.75
    assert answer(capability, 0.75).is_backchannel is False
    assert answer(capability, 0.75).confidence == 0.25
    over = answer(capability, float(np.nextafter(0.75, 1)), previous_utterance="and then")
    assert over.is_backchannel is True and over.confidence > 0.75
    assert over.metadata["threshold"] == 0.75 and over.metadata["previous_used"] is True
    assert sum(over.metadata["probabilities"].values()) == pytest.approx(1)
    assert (over.model_used, over.latency_ms) == ("m", 1.5)


@pytest.mark.parametrize(
    ("threshold", "probability", "decided"), [(0.0, 0.0, False), (0.0, 0.1, True), (1.0, 1.0, False)]
)
def test_the_ends_of_the_threshold(threshold: float, probability: float, decided: bool) -> None:
    capability = Backchannel()
    capability.threshold = threshold
    assert answer(capability, probability).is_backchannel is decided


def test_settings_are_taken() -> None:
    capability = Backchannel()
    capability.configure(SimpleNamespace(model_threshold=0.2, max_batch_size=7))
    assert (capability.threshold, capability.max_batch_size) == (0.2, 7)


def test_the_pair_is_trimmed_and_an_absent_previous_one_is_empty() -> None:
    capability = Backchannel()
    assert capability.prepare(BackchannelRequest(utterance=" yeah ")) == ("", "yeah")
    assert capability.prepare(BackchannelRequest(utterance="yeah", previous_utterance=" so \n")) == ("so", "yeah")


def test_label_one_counts_unless_a_label_is_called_backchannel() -> None:
    rows = [[0.0, 2.0], [3.0, 0.0]]
    first, second = Backchannel().run_batch(Logits(rows, ("LABEL_0", "LABEL_1")), [("", "a"), ("", "b")])
    assert first == pytest.approx(0.8808, abs=1e-4) and second == pytest.approx(0.0474, abs=1e-4)
    swapped = Backchannel().run_batch(Logits(rows, ("backchannel", "other")), [("", "a")])
    assert swapped[0] == pytest.approx(1 - first)


def test_silence_needs_no_model() -> None:
    capability = Backchannel()
    blank = capability.shortcut(BackchannelRequest(utterance=" \u3000\n"), "minilm")
    assert blank is not None and not blank.is_backchannel and blank.confidence == 1.0 and blank.latency_ms == 0.0
    assert capability.shortcut(BackchannelRequest(utterance="."), "minilm") is None
    assert capability.latencies.summary()["count"] == 0


@pytest.mark.parametrize("size", [1, 500])
def test_lengths_within_the_contract(size: int) -> None:
    BackchannelRequest(utterance="x" * size, previous_utterance="😀" * size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"utterance": ""},
        {"utterance": "x" * 501},
        {"utterance": "x", "previous_utterance": "y" * 501},
        {"previous_utterance": "y"},
    ],
)
def test_lengths_outside_the_contract(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        BackchannelRequest.model_validate(wrong)


def test_a_batch_keeps_each_context_and_has_a_bound() -> None:
    endpoint = Backchannel.endpoints[1]
    items: list[Any] = [{"utterance": "a", "previous_utterance": "b", "model": "own"}, "plain"]
    parts = endpoint.split(BackchannelBatchRequest(utterances=items, model="m", keep_alive=3))
    assert [(each.utterance, each.previous_utterance, each.model) for each in parts] == [
        ("a", "b", "own"),
        ("plain", None, "m"),
    ]
    assert parts[1].keep_alive == 3
    assert len(endpoint.split(BackchannelBatchRequest(utterances=["x"] * 32))) == 32
    with pytest.raises(ValidationError, match=r"33 are more than 32 \(MAX_BATCH_SIZE\)"):
        BackchannelBatchRequest(utterances=["x"] * 33)


def test_latencies() -> None:
    latencies = Latencies()
    assert latencies.summary()["average_ms"] is None
    for took_ms in range(1, 1501):
        latencies.add(float(took_ms))
    summary = latencies.summary()
    assert summary["count"] == 1500 and summary["max_ms"] == 1500
    assert summary["average_ms"] == 1000.5
    assert (summary["p50_ms"], summary["p95_ms"], summary["p99_ms"]) == (1000, 1450, 1490)
