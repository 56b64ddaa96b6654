"""The model routes: download, live upgrade, load, unload, delete; keep-alive and pinned models."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.product import Product, until

BETTER = """
id = "better"
title = "one that comes from the hub"
capabilities = ["emotion"]
runtime = "fake"
licence = "MIT"
preference = 500
files = [{ path = "weights.bin.safetensors" }]

[source]
repo = "tiny/better"

[heads.emotion]
output = "logits"
labels = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.add("tiny/better", {"weights.bin.safetensors": b"\0" * 300_000})
        yield running


@pytest.fixture
def product(launch: Callable[..., Product], hub: Hub, tmp_path: Path) -> Product:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "better.toml").write_text(BETTER, encoding="utf-8")
    return launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url)


def state(product: Product, model: str = "better") -> str:
    answer: str = product.call("GET", f"/models/{model}").json()["state"]
    return answer


def test_the_catalogue_is_shown_with_what_is_missing(product: Product) -> None:
    models = {model["id"]: model for model in product.call("GET", "/models").json()["models"]}
    assert len(models) >= 27
    assert models["minilm"]["state"] == "ready" and models["minilm"]["active_for"] == ["emotion"]
    assert models["minilm"]["resident_bytes"] >= 0 and models["minilm"]["missing"] == []
    assert models["better"]["state"] == "absent" and "models pull better" in models["better"]["missing"][0]["cure"]
    unknown = product.call("GET", "/models/nothing")
    assert unknown.status == 404 and unknown.json()["code"] == "model_not_found"


def test_a_download_takes_over_live_and_a_delete_falls_back(product: Product) -> None:
    answers: list[str] = [product.emotion("before").json()["model"]]
    assert product.call("POST", "/models/better/download").status == 202
    deadline = time.monotonic() + 20
    while answers[-1] != "better":
        assert time.monotonic() < deadline, answers[-1]
        answer = product.emotion("meanwhile")
        assert answer.status == 200
        answers.append(answer.json()["model"])
    assert answers == ["minilm"] * (len(answers) - 1) + ["better"]
    assert product.emotion("pinned", headers=None).status == 200
    pinned = product.call("POST", "/emotion/detect", {"text": "hello", "model": "minilm"})
    assert pinned.json()["model"] == "minilm"
    deleted = product.call("DELETE", "/models/better").json()
    assert deleted["state"] == "absent" and deleted["freed_bytes"] >= 300_000
    assert product.emotion("after").json()["model"] == "minilm"


def test_a_failing_download_says_why_and_harms_nothing(product: Product, hub: Hub) -> None:
    hub.close()
    assert product.call("POST", "/models/better/download").status == 202
    model = until(lambda: found(product, "error"), "the download fails")
    assert model["state"] == "absent" and "better" in model["error"]
    assert product.emotion("I am so happy today!").json()["emotion"] == "joy"


def found(product: Product, key: str) -> Any:
    model = product.call("GET", "/models/better").json()
    return model if model[key] else None


def test_load_unload_and_ps(product: Product) -> None:
    refused = product.call("POST", "/models/better/load")
    assert refused.status == 503 and "models pull better" in refused.json()["detail"]
    product.call("POST", "/models/better/download")
    until(lambda: state(product) == "ready", "downloaded and loaded")
    names = {model["name"] for model in product.call("GET", "/api/ps").json()["models"]}
    assert names == {"minilm", "better"}
    assert product.call("POST", "/models/better/unload").json()["state"] == "available"
    assert {model["name"] for model in product.call("GET", "/api/ps").json()["models"]} == {"minilm"}
    assert product.call("GET", "/health").json()["status"] == "healthy"
    assert product.call("POST", "/models/better/load").json()["state"] == "ready"


def test_keep_alive_of_a_request(product: Product) -> None:
    product.call("POST", "/models/better/download")
    until(lambda: state(product) == "ready", "downloaded and loaded")
    answer = product.call("POST", "/emotion/detect", {"text": "hello", "model": "better", "keep_alive": 0})
    assert answer.json()["model"] == "better"
    until(lambda: state(product) == "available", "gone at once", 5.0)
    bad = product.call("POST", "/emotion/detect", {"text": "hello", "keep_alive": "soon"})
    assert bad.status == 422 and "keep_alive" in bad.json()["detail"]
    nobody = product.call("POST", "/emotion/detect", {"text": "hello", "model": "nobody"})
    assert nobody.status == 404


def test_a_cancelled_download_is_no_error_of_anybody_else(product: Product, hub: Hub) -> None:
    hub.bytes_per_s = 20_000
    product.call("POST", "/models/better/download")
    until(lambda: state(product) == "downloading", "under way")
    product.call("POST", "/models/better/cancel")
    until(lambda: state(product) == "absent", "cancelled", 5.0)
    assert json.loads(product.call("GET", "/models/better").body)["error"]
