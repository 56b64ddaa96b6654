"""What the product answers to held-out sentences, which no training has seen: the table of the model card again."""

import csv
from typing import Any

import pytest

from sidecar.settings import ROOT
from tests.product import Product

DATA = ROOT / "models" / "build" / "data"
LEAST_EMOTION = 0.85
LEAST_BACKCHANNEL = 0.95


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def asked(product: Product, path: str, key: str, items: list[Any], size: int, result: str, **more: Any) -> list[Any]:
    found: list[Any] = []
    for start in range(0, len(items), size):
        answer = product.call("POST", path, {key: items[start : start + size], **more})
        assert answer.status == 200, answer
        found += answer.json()[result]
    return found


def test_emotion(product: Product, capsys: pytest.CaptureFixture[str]) -> None:
    test = rows("emotion_test.tsv")
    results = asked(product, "/emotion/detect/batch", "texts", [row["text"] for row in test], 256, "results")
    right = [row["label"] == result["emotion"] for row, result in zip(test, results, strict=True)]
    accuracy = sum(right) / len(right)
    with capsys.disabled():
        print(f"\nemotion, embedded: {accuracy:.1%} of {len(test)} held-out sentences (bound {LEAST_EMOTION:.0%})")
    assert len(test) >= 500 and len({row["label"] for row in test}) == 7
    assert accuracy >= LEAST_EMOTION


def test_backchannel(product: Product, capsys: pytest.CaptureFixture[str]) -> None:
    test = rows("backchannel_test.tsv")
    items = [{"utterance": row["utterance"], "previous_utterance": row["previous"]} for row in test]
    accuracy = {}
    for model in ("minilm", "baseline"):
        results = asked(product, "/api/v1/predict/batch", "utterances", items, 32, "predictions", model=model)
        right = [(row["label"] == "1") == each["is_backchannel"] for row, each in zip(test, results, strict=True)]
        accuracy[model] = sum(right) / len(right)
    alone = [{"utterance": item["utterance"]} for item in items]
    results = asked(product, "/api/v1/predict/batch", "utterances", alone, 32, "predictions", model="minilm")
    right = [(row["label"] == "1") == each["is_backchannel"] for row, each in zip(test, results, strict=True)]
    accuracy["without context"] = sum(right) / len(right)
    with capsys.disabled():
        told = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
        print(f"\nbackchannel: {told} of {len(test)} held-out pairs (bound {LEAST_BACKCHANNEL:.0%})")
    assert len(test) >= 400
    assert accuracy["minilm"] >= LEAST_BACKCHANNEL
    # The context is what decides: neither the table nor the model without it comes near.
    assert max(accuracy["baseline"], accuracy["without context"]) < accuracy["minilm"] - 0.05


def test_the_card_has_the_figures() -> None:
    card = (ROOT / "models" / "embedded" / "README.md").read_text(encoding="utf-8")
    assert "**94.1 %**" in card and "**97.2 %**" in card and "65.2 %" in card
