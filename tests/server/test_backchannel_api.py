"""`/api/v1/*` on the embedded model and the keyword table, as CONTRACTS says."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.product import Answer, Product, until

STORY = "so then we turned left at the bridge and"
ODD = [
    "x", "?", "😀", "👍🏽👍🏽", "\x00", "a\x00b", "שלום", "\u202egnirts", "مرحبا", "[SEP] [CLS] [PAD]", "{utterance}",
    "x" * 500, "😀" * 500, "word " * 100, "\ufffe\uffff", "mm-hm\n",
]  # fmt: skip


def predict(product: Product, utterance: str, previous: str | None = None, **more: Any) -> Answer:
    return product.call("POST", "/api/v1/predict", {"utterance": utterance, "previous_utterance": previous, **more})


def check(answer: dict[str, Any], model: str = "minilm") -> None:
    assert set(answer) == {"is_backchannel", "confidence", "model_used", "latency_ms", "metadata"}
    metadata = answer["metadata"]
    assert answer["is_backchannel"] is (metadata["probabilities"]["backchannel"] > metadata["threshold"])
    decided = "backchannel" if answer["is_backchannel"] else "other"
    assert answer["confidence"] == metadata["probabilities"][decided] and 0 <= answer["confidence"] <= 1
    assert answer["model_used"] == model and answer["latency_ms"] > 0


@pytest.mark.parametrize(
    ("previous", "utterance", "expected"),
    [
        (STORY, "okay", True),
        ("Can you hold for a minute?", "okay", False),
        ("We deliver within two weeks as a rule.", "yeah", True),
        ("We deliver within two weeks as a rule.", "yeah but the contract says thirty days", False),
        ("Which arm hurts, left or right?", "right", False),
        (None, "mm-hm", True),
        (None, "I'd like to book a table", False),
    ],
)
def test_the_previous_utterance_decides(product: Product, previous: str | None, utterance: str, expected: bool) -> None:
    answer = predict(product, utterance, previous)
    assert answer.status == 200
    check(answer.json())
    assert answer.json()["is_backchannel"] is expected
    assert answer.json()["metadata"]["previous_used"] is (previous is not None)


def test_case_and_blanks_around_change_nothing(product: Product) -> None:
    plain = predict(product, "okay", "we turned left").json()
    loud = predict(product, " OKAY ", "We Turned Left \n").json()
    assert loud["metadata"]["probabilities"] == plain["metadata"]["probabilities"]


@pytest.mark.parametrize("text", ODD)
def test_every_text_is_answered(product: Product, text: str) -> None:
    for answer in (predict(product, text), predict(product, text, text), predict(product, "mm-hm", text)):
        assert answer.status == 200
        check(answer.json())


def test_silence_is_no_backchannel(product: Product) -> None:
    answer = predict(product, " \u3000", STORY).json()
    assert (answer["is_backchannel"], answer["confidence"], answer["latency_ms"]) == (False, 1.0, 0.0)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "JSON"),
        (b'{"utterance": "lone \\u"}', 400, "JSON"),
        (b"[]", 422, "body"),
        (b"{}", 422, "utterance"),
        (b'{"utterance": ""}', 422, "utterance"),
        (b'{"utterance": null}', 422, "utterance"),
        (b'{"utterance": 7}', 422, "utterance"),
        (json.dumps({"utterance": "x" * 501}).encode(), 422, "utterance"),
        (json.dumps({"utterance": "x", "previous_utterance": "y" * 501}).encode(), 422, "previous_utterance"),
    ],
)
def test_what_is_outside_the_contract_is_named(product: Product, body: bytes, status: int, named: str) -> None:
    answer = product.call("POST", "/api/v1/predict", body)
    assert answer.status == status and named in answer.json()["detail"]


def test_a_batch_keeps_order_and_each_context(product: Product) -> None:
    items = [
        {"utterance": "okay", "previous_utterance": STORY},
        {"utterance": "okay", "previous_utterance": "Can you hold for a minute?"},
        {"utterance": "   "},
        {"utterance": "mm-hm", "model": "baseline"},
        "I'd like to book a table",
    ]
    answer = product.call("POST", "/api/v1/predict/batch", {"utterances": items})
    assert answer.status == 200
    predictions = answer.json()["predictions"]
    assert [each["is_backchannel"] for each in predictions] == [True, False, False, True, False]
    assert [each["metadata"]["previous_used"] for each in predictions] == [True, True, False, False, False]
    assert [each["model_used"] for each in predictions] == ["minilm", "minilm", "minilm", "baseline", "minilm"]


@pytest.mark.parametrize("count", [0, 1, 2, 32])
def test_a_batch_of_mixed_lengths_up_to_the_bound(product: Product, count: int) -> None:
    items = [{"utterance": ("mm " * (1 + 5 * i))[:500], "previous_utterance": "and so " * i} for i in range(count)]
    answer = product.call("POST", "/api/v1/predict/batch", {"utterances": items})
    assert answer.status == 200 and len(answer.json()["predictions"]) == count
    for each in answer.json()["predictions"]:
        check(each)


def test_a_batch_over_the_bound_is_refused(product: Product) -> None:
    answer = product.call("POST", "/api/v1/predict/batch", {"utterances": [{"utterance": "x"}] * 33})
    assert answer.status == 422 and "MAX_BATCH_SIZE" in answer.json()["detail"]


def test_one_bad_item_of_a_batch_is_named(product: Product) -> None:
    items = [{"utterance": "x"}, {"utterance": ""}]
    answer = product.call("POST", "/api/v1/predict/batch", {"utterances": items})
    assert answer.status == 422 and "utterances.1.utterance" in answer.json()["detail"]


def test_models_are_chosen_by_name(product: Product) -> None:
    answer = predict(product, "Oh, wow!", "She won.", model="baseline").json()
    check(answer, "baseline")
    assert answer["is_backchannel"] and answer["confidence"] == pytest.approx(0.69)
    assert predict(product, "x", model="nobody").status == 404
    assert predict(product, "x", model="bge-small-en-v1.5").status == 404


def test_the_settings_apply_and_the_threshold_changes_at_run_time(launch: Callable[..., Product]) -> None:
    product = launch(MODEL_THRESHOLD="0.9999", MAX_BATCH_SIZE="2")
    assert not predict(product, "okay", STORY).json()["is_backchannel"]
    too_many = product.call("POST", "/api/v1/predict/batch", {"utterances": [{"utterance": "x"}] * 3})
    assert too_many.status == 422 and "more than 2" in too_many.json()["detail"]
    info = product.call("GET", "/api/v1/model/info").json()
    assert {"model_name": "minilm", "is_ready": True, "model_type": "onnx", "threshold": 0.9999}.items() <= info.items()
    assert info["max_batch_size"] == 2 and info["models"] == ["minilm", "baseline"]
    assert info["latency"]["count"] >= 1 and info["latency"]["p95_ms"] >= info["latency"]["p50_ms"] > 0

    # Strictly: at its own probability it is none, just below it is one.
    probability = predict(product, "okay", STORY).json()["metadata"]["probabilities"]["backchannel"]
    for threshold, decided in ((probability, False), (probability - 1e-6, True), (0.0, True), (1.0, False)):
        changed = product.call("PUT", "/api/v1/model/threshold", {"threshold": threshold})
        assert changed.status == 200 and changed.json()["threshold"] == threshold
        assert predict(product, "okay", STORY).json()["is_backchannel"] is decided

    for kind in ("application/x-www-form-urlencoded", "text/plain"):  # as curl says it without being told
        token = {"Authorization": f"Bearer {product.token}", "Content-Type": kind}
        assert product.call("PUT", "/api/v1/model/threshold", b'{"threshold": 1.0}', token).status == 200
    for wrong in ("1.5", "-0.1", '"x"', '"0.5"', "true", "NaN", "null", ""):
        refused = product.call("PUT", "/api/v1/model/threshold", f'{{"threshold": {wrong}}}'.encode())
        assert refused.status in (400, 422) and refused.headers["content-type"] == "application/problem+json"
    assert product.call("GET", "/api/v1/model/info").json()["threshold"] == 1.0


def test_every_answer_fits_the_threshold_it_names_while_that_changes(launch: Callable[..., Product]) -> None:
    product = launch()
    seen: set[float] = set()

    def change(number: int) -> None:
        product.call("PUT", "/api/v1/model/threshold", {"threshold": (0.1, 0.9999)[number % 2]})

    def ask(_: int) -> None:
        for answer in product.call(
            "POST", "/api/v1/predict/batch", {"utterances": [{"utterance": "okay", "previous_utterance": STORY}] * 4}
        ).json()["predictions"]:
            check(answer)
            seen.add(answer["metadata"]["threshold"])

    with ThreadPoolExecutor(8) as threads:

        def both_seen() -> bool:
            list(threads.map(lambda number: (change if number % 3 == 0 else ask)(number), range(48)))
            return {0.1, 0.9999} <= seen

        until(both_seen, "answers under both thresholds")


def test_the_threshold_outlives_a_crash_of_the_server_and_not_the_sidecar(launch: Callable[..., Product]) -> None:
    product = launch(MODEL_THRESHOLD="0.6")
    assert product.call("PUT", "/api/v1/model/threshold", {"threshold": 0.123456789}).status == 200
    first = product.server()
    first.kill()
    until(lambda: product.handshake["server"] and product.handshake["server"]["pid"] != first.pid, "another server")
    product.wait("ready")
    assert predict(product, "okay", STORY).json()["metadata"]["threshold"] == 0.123456789
    product.close()
    with Product(product.home, MODEL_THRESHOLD="0.6") as again:
        assert again.call("GET", "/api/v1/model/info").json()["threshold"] == 0.6


def test_a_wrong_setting_names_itself(launch: Callable[..., Product]) -> None:
    product = launch(MODEL_THRESHOLD="1.5", wait=False)
    assert product.process.wait(30) == 78


def test_openapi_has_the_routes(product: Product) -> None:
    paths = product.call("GET", "/openapi.json").json()["paths"]
    example = paths["/api/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert predict(product, example["utterance"], example["previous_utterance"]).json()["is_backchannel"] is True
    parameter = paths["/classify/{model}"]["post"]["parameters"][0]
    assert (parameter["name"], parameter["in"]) == ("model", "path")
