"""Agreement and the decision, from figures alone."""

import numpy as np
import pytest

from sidecar.optimise.compare import Agreement, Latency, agreement, choose, measure

EXPECTED = np.array([[3.0, 0.0, -1.0], [0.0, 2.0, 1.9], [-1.0, 0.0, 1.0], [2.0, 2.1, 0.0]])
GOOD = Agreement(0.995, 0.999, 0.98, 573)
FAR = Agreement(0.98, 0.99, 0.9, 573)


def times(*p50_ms: float) -> dict[int, Latency]:
    return {batch: Latency(each, each * 1.5) for batch, each in zip((1, 8, 16), p50_ms, strict=True)}


def test_agreement_counts_labels_and_directions() -> None:
    assert agreement(EXPECTED, EXPECTED * 1.1) == pytest.approx(Agreement(1.0, 1.0, 1.0, 4))
    other = EXPECTED.copy()
    other[1] = [0.0, 1.9, 2.0]
    found = agreement(EXPECTED, other)
    assert found.same_label == 0.75 and found.cosine_min == pytest.approx(7.6 / 7.61, abs=1e-3)
    assert agreement(EXPECTED, -EXPECTED).cosine_mean == pytest.approx(-1.0)


def test_the_best_label_agrees_only_on_the_same_side_of_the_threshold() -> None:
    expected = np.array([[2.0, 0.0], [0.0, 3.0], [0.1, 0.0]])  # 0.88, 0.95, 0.52
    found = np.array([[2.4, 0.0], [0.0, 3.1], [0.2, 0.0]])  # 0.92, 0.96, 0.55
    assert agreement(expected, found).same_label == 1
    assert agreement(expected, found, threshold=0.9).same_label == pytest.approx(2 / 3)
    assert agreement(expected, found, threshold=0.99).same_label == 1


def test_several_labels_agree_only_together() -> None:
    other = EXPECTED.copy()
    other[0, 2] = 0.5
    assert agreement(EXPECTED, other, multi_label=True).same_label == 0.75
    # At 0.7 the border lies at log(0.7 / 0.3) = 0.85: that label stays off.
    assert agreement(EXPECTED, other, multi_label=True, threshold=0.7).same_label == 1.0


def test_the_fastest_that_agrees_is_kept() -> None:
    latencies = {"torch": times(20, 80, 160), "onnx": times(12, 50, 90), "int8": times(5, 20, 40)}
    assert choose({"onnx": GOOD, "int8": GOOD}, latencies).kept == "int8"
    far = choose({"onnx": GOOD, "int8": FAR}, latencies)
    assert far.kept == "onnx" and "98.0 % same label on 573 texts" in far.statement
    assert "too far from the original" in far.statement


def test_what_is_slower_anywhere_is_not_kept() -> None:
    latencies = {"torch": times(20, 80, 160), "onnx": times(12, 50, 150), "int8": times(25, 20, 40)}
    choice = choose({"onnx": GOOD, "int8": GOOD}, latencies)
    assert choice.kept is None
    assert choice.statement.startswith("nothing is gained, the original stays as it is (onnx: ")
    assert choice.statement.count("not faster everywhere") == 2


def test_measuring_takes_turns_with_the_same_texts() -> None:
    calls: list[tuple[str, list[str]]] = []

    def contestant(name: str) -> object:
        def classify(texts: list[str]) -> object:
            calls.append((name, texts))
            return np.zeros((len(texts), 2))

        return classify

    found = measure({"torch": contestant("torch"), "int8": contestant("int8")}, [str(n) for n in range(40)])  # type: ignore[dict-item]
    assert set(found) == {"torch", "int8"} and set(found["int8"]) == {1, 8, 16}
    assert [name for name, _ in calls[:4]] == ["torch", "int8", "torch", "int8"]
    assert all(first[1] == second[1] for first, second in zip(calls[::2], calls[1::2], strict=True))
    assert found["torch"][8].p99_ms >= found["torch"][8].p50_ms > 0
