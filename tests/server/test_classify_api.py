"""`/classify/{model}`: text classifiers that a user adds by a TOML alone, through the whole product."""

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.product import Answer, Product
from tests.tiny import write_classifier

HEAD = """
id = "{id}"
title = "my own classifier"
capabilities = ["classify"]
runtime = "onnx"
licence = "MIT"
folder = "{folder}"
files = [{{ path = "model.onnx" }}, {{ path = "tokenizer.json" }}]

[heads.classify]
"""
# One logit per label: words that stand for it.
ROWS = {"fine": [4, 0, 0], "broken": [0, 4, 0], "why": [0, 0, 4], "[SEP]": [0, 0, 0]}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("catalogue")
    write_classifier(folder / "single", ROWS)
    write_classifier(folder / "named", ROWS, ["praise", "complaint", "question"])
    write_classifier(folder / "several", ROWS, ["a", "b", "c"], problem_type="multi_label_classification")
    write_classifier(folder / "pair", {"yes": [1, 0], "no": [0, 1], "[SEP]": [0, 10]})
    write_classifier(folder / "nameless", ROWS)
    write_classifier(folder / "overflowing", {"fine": [1, 0], "far": [float("inf"), 0], "out": [float("nan"), 0]})
    heads = {
        "single": 'labels = ["praise", "complaint", "question"]\nthreshold = 0.9',
        "named": "",
        "several": "threshold = 0.6",
        "pair": 'labels = ["agree", "deny"]\ntemplate = "{text} {text_pair}"\nlower = true',
        "nameless": "",
        "overflowing": 'labels = ["yes", "no"]',
    }
    for name, head in heads.items():
        text = HEAD.format(id=name, folder=name) + head
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    with Product(tmp_path_factory.mktemp("home"), SIDECAR_CATALOGUE=str(folder)) as running:
        yield running


def ask(product: Product, model: str, text: str, **more: Any) -> Answer:
    return product.call("POST", f"/classify/{model}", {"text": text, **more})


def classify(product: Product, model: str, text: str, **more: Any) -> Any:
    answer = ask(product, model, text, **more)
    assert answer.status == 200, answer
    return answer.json()


def test_a_toml_is_all_it_takes(product: Product) -> None:
    answer = classify(product, "single", "it came broken")
    assert answer["labels"] == ["complaint"] and answer["model"] == "single" and not answer["multi_label"]
    assert [each["label"] for each in answer["scores"]] == ["complaint", "praise", "question"]
    assert sum(each["score"] for each in answer["scores"]) == pytest.approx(1)
    assert answer["threshold"] == 0.9 and answer["processing_time_ms"] > 0


def test_below_its_threshold_no_label_holds(product: Product) -> None:
    assert classify(product, "single", "fine but broken")["labels"] == []
    assert classify(product, "single", "fine but broken", threshold=0.4)["labels"] == ["praise"]


def test_no_number_is_no_answer_and_harms_no_neighbour(product: Product) -> None:
    with ThreadPoolExecutor(9) as threads:
        told = list(threads.map(lambda n: ask(product, "overflowing", ("fine", "far", "out")[n % 3]), range(45)))
    assert [each.status for each in told] == [200, 500, 500] * 15
    assert {each.json()["code"] for each in told if each.status == 500} == {"inference_failed"}
    assert "NaN" in told[1].json()["detail"]


def test_labels_come_from_the_config(product: Product) -> None:
    answer = classify(product, "named", "why")
    assert answer["labels"] == ["question"] and answer["threshold"] is None


def test_several_labels_may_hold(product: Product) -> None:
    answer = classify(product, "several", "fine but broken")
    assert answer["labels"] == ["a", "b"] and answer["multi_label"] and answer["threshold"] == 0.6
    assert [each["score"] for each in answer["scores"]] == pytest.approx([0.982014, 0.982014, 0.5], abs=1e-5)
    assert classify(product, "several", "nothing known")["labels"] == []


def test_a_template_and_case(product: Product) -> None:
    # Two segments would have a second [SEP], which outweighs everything.
    few = classify(product, "pair", "YES", text_pair="Yes")
    assert few["labels"] == ["deny"] and few["scores"][0]["score"] == pytest.approx(1 / (1 + math.exp(2 - 10)))
    agreed = classify(product, "pair", "YES " * 12, text_pair="yes")
    assert agreed["labels"] == ["agree"]
    assert classify(product, "pair", "YES " * 12, text_pair="no " * 12)["labels"] == ["deny"]


@pytest.mark.parametrize(
    "text", ["", " ", "x", "😀", "\x00", "שלום", "\u202egnirts", "broken " * 5000, "[SEP] [PAD] [CLS]", "{text_pair}"]
)
def test_every_text_is_answered(product: Product, text: str) -> None:
    assert len(classify(product, "single", text)["scores"]) == 3


@pytest.mark.parametrize("count", [0, 1, 33, 256])
def test_batches(product: Product, count: int) -> None:
    words = ["fine", "broken", "why"]
    texts = [words[i % 3] + " and so on" * (i % 30) for i in range(count)]
    answer = product.call("POST", "/classify/named/batch", {"texts": texts})
    assert answer.status == 200
    labels = ["praise", "complaint", "question"]
    assert [each["labels"] for each in answer.json()["results"]] == [[labels[i % 3]] for i in range(count)]


def test_a_batch_of_pairs_and_texts(product: Product) -> None:
    items = [{"text": "yes " * 12, "text_pair": "yes"}, "no", {"text": "yes", "model": "single"}]
    answer = product.call("POST", "/classify/pair/batch", {"texts": items, "threshold": 0.5}).json()["results"]
    assert [each["labels"] for each in answer[:2]] == [["agree"], ["deny"]]
    assert {each["model"] for each in answer} == {"pair"} and {each["threshold"] for each in answer} == {0.5}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/classify/nobody", b'{"text": "x"}', 404, "nobody"),
        ("/classify/minilm", b'{"text": "x"}', 404, "does not offer classify"),
        ("/classify/nameless", b'{"text": "x"}', 503, "nobody names the labels"),
        ("/classify/single", b"{}", 422, "text"),
        ("/classify/single", b"", 400, "JSON"),
        ("/classify/single", b'{"text": "\\udff"}', 400, "JSON"),
        ("/classify/single", b'{"text": "x", "threshold": 2}', 422, "threshold"),
        ("/classify/single", b'{"text": "x", "threshold": true}', 422, "threshold"),
        ("/classify/single/batch", b'{"texts": ["x"], "threshold": "0.5"}', 422, "threshold"),
        ("/classify/single/batch", json.dumps({"texts": ["x"] * 257}).encode(), 422, "texts"),
        ("/classify/single/other", b"{}", 404, "/classify/single/other"),
        ("/classify/", b"{}", 404, "/classify/"),
    ],
)
def test_what_cannot_be_answered_is_named(product: Product, path: str, body: bytes, status: int, told: str) -> None:
    answer = product.call("POST", path, body)
    assert answer.status == status and told in answer.json()["detail"]


def test_the_path_names_the_model(product: Product) -> None:
    answer = product.call("POST", "/classify/named", {"text": "why", "model": "single"})
    assert answer.json()["model"] == "named"


def test_having_no_classifier_is_no_fault(launch: Callable[..., Product], tmp_path: Path) -> None:
    health = launch().call("GET", "/health").json()
    assert health["status"] == "healthy" and health["warnings"] == []
    assert health["models_loaded"]["emotion"] and not health["models_loaded"]["classify"]
