"""The model routes: download, live upgrade, load, unload, delete; keep-alive and pinned models."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.load import Load
from tests.product import Product, until, write_hub_fake


@pytest.fixture
def hub(hub: Hub) -> Hub:
    hub.add("tiny/better", {"weights.safetensors": b"\0" * 300_000})
    return hub


@pytest.fixture
def product(launch: Callable[..., Product], hub: Hub, tmp_path: Path) -> Product:
    folder = tmp_path / "catalogue"
    write_hub_fake(folder, "better")
    return launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url)


def state(product: Product, model: str = "better") -> str:
    answer: str = product.call("GET", f"/models/{model}").json()["state"]
    return answer


def test_the_catalogue_is_shown_with_what_is_missing(product: Product) -> None:
    models = {model["id"]: model for model in product.call("GET", "/models").json()["models"]}
    assert len(models) >= 27
    assert models["minilm"]["state"] == "ready" and set(models["minilm"]["active_for"]) == {
        "emotion",
        "backchannel",
        "embeddings",
    }
    assert models["minilm"]["resident_bytes"] >= 0 and models["minilm"]["missing"] == []
    assert models["better"]["state"] == "absent" and "models pull better" in models["better"]["missing"][0]["cure"]
    unknown = product.call("GET", "/models/nothing")
    assert unknown.status == 404 and unknown.json()["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["gpt2", "smollm2-135m-instruct", "smollm2-135m-analysis"])
def test_what_nothing_here_could_run_is_not_offered(product: Product, model: str) -> None:
    shown = product.call("GET", f"/models/{model}").json()
    [missing] = shown["missing"]
    assert shown["state"] == "absent"
    assert "no runtime for it in this version" in missing["reason"] and missing["cure"] == ""
    for action in ("load", "download"):
        refused = product.call("POST", f"/models/{model}/{action}")
        problem = refused.json()
        assert refused.status == 501 and problem["code"] == "model_unsupported" and not problem["retryable"], problem
        assert "retry-after" not in refused.headers and model in problem["detail"]
    assert not product.call("GET", f"/models/{model}").json()["progress"]
    needing = [name for row in product.call("GET", "/profiles").json()["profiles"] for name in row["models"]]
    assert model not in needing


def test_a_model_that_can_be_fetched_may_be_asked_for_again(product: Product) -> None:
    refused = product.call("POST", "/emotion/detect", {"text": "x", "model": "better"})
    assert refused.status == 503 and refused.json()["code"] == "model_unavailable" and "retry-after" in refused.headers
    spoken = product.call("POST", "/v1/audio/speech", {"model": "fish-speech-1.5", "input": "x", "voice": "alloy"})
    assert spoken.status == 501 and spoken.json()["error"]["code"] == "model_unsupported"
    assert spoken.headers["x-should-retry"] == "false" and "retry-after" not in spoken.headers


def test_what_was_not_downloaded_is_neither_deleted_nor_unloaded(product: Product) -> None:
    before = product.call("GET", "/models/minilm").json()["pid"]
    refused = product.call("DELETE", "/models/minilm")
    assert refused.status == 400 and not refused.json()["retryable"], refused.body
    assert product.call("GET", "/models/minilm").json()["pid"] == before, "it goes on answering"


def test_a_download_takes_over_live_and_a_delete_falls_back(product: Product) -> None:
    answers: list[str] = [product.emotion("before").json()["model"]]
    assert product.call("POST", "/models/better/download").status == 202
    deadline = time.monotonic() + 60
    while answers[-1] != "better":
        assert time.monotonic() < deadline, answers[-1]
        answer = product.emotion("meanwhile")
        assert answer.status == 200
        answers.append(answer.json()["model"])
    assert answers == ["minilm"] * (len(answers) - 1) + ["better"]
    assert product.emotion("pinned", headers=None).status == 200
    pinned = product.call("POST", "/emotion/detect", {"text": "hello", "model": "minilm"})
    assert pinned.json()["model"] == "minilm"
    with Load(product, clients=4) as load:
        until(lambda: load.answered_by("better"), "it is asked all the time")
        deleted = product.call("DELETE", "/models/better").json()
        assert deleted["state"] == "absent" and deleted["freed_bytes"] >= 300_000
        until(lambda: load.answered_by("minilm"), "the next best answers")
    assert [answer for answer in load.answers if answer[0] != 200] == []
    assert product.emotion("after").json()["model"] == "minilm"
    resident = [each["name"] for each in product.call("GET", "/api/ps").json()["models"]]
    assert "better" not in resident and product.call("GET", "/models/better").json()["state"] == "absent"


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
    until(lambda: state(product) == "available", "gone at once")
    bad = product.call("POST", "/emotion/detect", {"text": "hello", "keep_alive": "soon"})
    assert bad.status == 422 and "keep_alive" in bad.json()["detail"]
    nobody = product.call("POST", "/emotion/detect", {"text": "hello", "model": "nobody"})
    assert nobody.status == 404


def test_a_cancelled_download_is_no_error_of_anybody_else(product: Product, hub: Hub) -> None:
    hub.bytes_per_s = 2_000
    product.call("POST", "/models/better/download")
    until(lambda: state(product) == "downloading", "under way")
    product.call("POST", "/models/better/cancel")
    until(lambda: state(product) == "absent", "cancelled, minutes before its end")
    assert json.loads(product.call("GET", "/models/better").body)["error"]
