"""`/emotion/detect` and its batch, on the embedded model, as CONTRACTS says."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.product import Product

LABELS = {"anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"}


def check(answer: dict[str, Any]) -> None:
    assert {"emotion", "confidence", "all_emotions", "processing_time_ms", "model"} <= set(answer)
    scores = [entry["score"] for entry in answer["all_emotions"]]
    assert {entry["label"] for entry in answer["all_emotions"]} == LABELS
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1.0, abs=1e-4)
    assert answer["emotion"] == answer["all_emotions"][0]["label"] and answer["confidence"] == scores[0]
    assert answer["processing_time_ms"] > 0 and answer["model"] == "minilm"


def test_joy(product: Product) -> None:
    answer = product.emotion("I am so happy today!")
    assert answer.status == 200
    check(answer.json())
    assert answer.json()["emotion"] == "joy"


@pytest.mark.parametrize("text", ["", "   ", "\n\t ", "\u3000"])
def test_blank_is_neutral(product: Product, text: str) -> None:
    assert product.emotion(text).json() == {
        "emotion": "neutral",
        "confidence": 1.0,
        "all_emotions": [{"label": "neutral", "score": 1.0}],
        "processing_time_ms": 0.0,
        "model": "minilm",
    }


@pytest.mark.parametrize(
    "text",
    [
        "x", "!", "😀", "😡😡😡", "\x00", "a\x00b", "שלום, אני שמח", "مرحبا", "今日はとても嬉しい", "\u202egnirts",
        "[SEP] [CLS] [PAD]",
        "e\u0301" * 50, "word " * 2000, "x" * 10_000, "\ufffe\uffff", "\\u0000", "<script>x</script>",
    ],
)  # fmt: skip
def test_every_text_is_answered(product: Product, text: str) -> None:
    answer = product.emotion(text)
    assert answer.status == 200
    check(answer.json())


@pytest.mark.parametrize(
    ("body", "status", "code", "named"),
    [
        (b"", 400, "invalid_json", "JSON"),
        (b"{", 400, "invalid_json", "JSON"),
        (b"\x00\x01", 400, "invalid_json", "JSON"),
        (b"\xff\xfe{}", 400, "invalid_json", "JSON"),
        ('{"text": "café"}'.encode("latin-1"), 400, "invalid_json", "not UTF-8 (byte 14)"),
        (b'{"text": "not hex \\ud8"}', 400, "invalid_json", "JSON"),
        (b"[]", 422, "invalid_input", "body"),
        (b"{}", 422, "invalid_input", "text"),
        (b'{"text": null}', 422, "invalid_input", "text"),
        (b'{"text": 7}', 422, "invalid_input", "text"),
        (b'{"text": ["a"]}', 422, "invalid_input", "text"),
    ],
)
def test_bad_bodies_are_named(product: Product, body: bytes, status: int, code: str, named: str) -> None:
    answer = product.call("POST", "/emotion/detect", body)
    assert answer.status == status
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code and named in problem["detail"] and not problem["retryable"]


def test_deep_json_crashes_nothing(product: Product) -> None:
    answer = product.call("POST", "/emotion/detect", b'{"text":' + b"[" * 500_000 + b"]" * 500_000 + b"}")
    assert answer.status in (400, 422)


def test_batch_keeps_order_and_handles_blanks(product: Product) -> None:
    texts = ["I am so happy today!", "", "I am terrified of the dark basement", "He is furious with you!"]
    answer = product.call("POST", "/emotion/detect/batch", {"texts": texts})
    assert answer.status == 200
    results = answer.json()["results"]
    assert [result["emotion"] for result in results] == ["joy", "neutral", "fear", "anger"]
    assert results[1]["processing_time_ms"] == 0.0


@pytest.mark.parametrize("count", [0, 1, 33, 256])
def test_batch_of_any_size_up_to_the_bound(product: Product, count: int) -> None:
    texts = [f"text number {i} " + "and more " * (i % 40) for i in range(count)]
    answer = product.call("POST", "/emotion/detect/batch", {"texts": texts})
    assert answer.status == 200 and len(answer.json()["results"]) == count


def test_batch_over_the_bound_is_refused(product: Product) -> None:
    answer = product.call("POST", "/emotion/detect/batch", {"texts": ["x"] * 257})
    assert answer.status == 422 and "texts" in answer.json()["detail"]


def test_the_same_text_gets_the_same_label_alone_and_in_company(product: Product) -> None:
    things = ("new neighbour", "long and complicated letter from the insurance that came this morning", "dog")
    texts = [f"{feeling} about the {thing}" for feeling in ("furious", "so happy", "scared") for thing in things]
    alone = [product.emotion(text).json()["emotion"] for text in texts]
    with ThreadPoolExecutor(9) as threads:
        together = [answer.json()["emotion"] for answer in threads.map(product.emotion, texts)]
    assert alone == together


def test_wrong_method_and_path_are_problems(product: Product) -> None:
    answer = product.call("GET", "/emotion/detect")
    assert answer.status == 405 and answer.headers["allow"] == "POST" and answer.json()["code"] == "method_not_allowed"
    missing = product.call("GET", "/emotions")
    assert missing.status == 404 and missing.json()["code"] == "not_found"


def test_openapi_shows_the_routes_with_examples(product: Product) -> None:
    schema = product.call("GET", "/openapi.json").json()
    operation = schema["paths"]["/emotion/detect"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["example"] == {"text": "I am so happy today!"}
    assert "EmotionResponse" in json.dumps(operation["responses"]["200"])
    text = json.dumps(schema)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schema["components"]["schemas"], name
