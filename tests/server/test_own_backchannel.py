"""A DistilBERT of the user's own (tiny, in its format), from a folder, the hub and S3, through the whole product."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.catalogue.profiles import STAMP
from sidecar.settings import ROOT
from tests.catalogue.bucket import KEY_ID, REGION, SECRET, running_bucket
from tests.hub import Hub
from tests.product import Product, until
from tests.tiny import write_classifier
from tests.torch_profile import make_classifier, torch_python

# Label 1 grows by 1 with each known (lower-case) word, label 0 with each [SEP] beyond the last one.
ROWS = {"yeah": [0, 1], "so": [0, 1], "[SEP]": [1, 0]}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_classifier(tmp_path / "distilbert", ROWS)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logit(product: Product, utterance: str, previous: str | None = None) -> float:
    """How far label 1 is above label 0."""
    body = {"utterance": utterance, "previous_utterance": previous, "model": "distilbert-onnx"}
    answer = product.call("POST", "/api/v1/predict", body).json()
    assert answer["model_used"] == "distilbert-onnx"
    probability = answer["metadata"]["probabilities"]["backchannel"]
    return round(math.log(probability / (1 - probability)), 3)


def check(product: Product) -> None:
    """It is the one that answers, and reads what such models are trained on."""
    info = product.call("GET", "/api/v1/model/info").json()
    assert info["model_name"] == "distilbert-onnx" and info["models"] == ["distilbert-onnx", "minilm", "baseline"]
    assert product.call("POST", "/api/v1/predict", {"utterance": "x"}).json()["model_used"] == "distilbert-onnx"
    assert logit(product, "YEAH Yeah") == 1  # 2 words, 1 [SEP] at the end
    assert logit(product, "yeah yeah", "So") == 1  # 3 words, 2 [SEP]: the template's own is the special token
    assert logit(product, " Yeah ", "  ") == 0


def test_from_a_folder(launch: Callable[..., Product], files: dict[str, bytes], tmp_path: Path) -> None:
    product = launch(SIDECAR_BACKCHANNEL_MODEL=str(tmp_path / "distilbert"))
    check(product)
    assert product.call("GET", "/models/distilbert-onnx").json()["missing"] == []
    torch = product.call("GET", "/models/distilbert").json()["missing"]
    assert any("model.safetensors" in each["reason"] for each in torch)


def test_from_a_folder_with_an_onnx_folder(
    launch: Callable[..., Product], files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "distilbert" / "onnx").mkdir()
    os.replace(tmp_path / "distilbert" / "model.onnx", tmp_path / "distilbert" / "onnx" / "model.onnx")
    check(launch(SIDECAR_BACKCHANNEL_MODEL=str(tmp_path / "distilbert")))


def fetched(product: Product) -> None:
    """Download live: it takes over without a restart."""
    assert product.call("POST", "/api/v1/predict", {"utterance": "x"}).json()["model_used"] == "minilm"
    assert product.call("POST", "/models/distilbert-onnx/download").status == 202

    def model() -> Any:
        return product.call("GET", "/models/distilbert-onnx").json()

    until(lambda: model()["active_for"] or model()["error"], "downloaded and in use")
    assert model()["error"] is None
    check(product)


def test_from_the_hub(launch: Callable[..., Product], files: dict[str, bytes]) -> None:
    with Hub() as hub:
        hub.add("someone/backchannels", files)
        product = launch(SIDECAR_BACKCHANNEL_MODEL="someone/backchannels", HF_ENDPOINT=hub.url)
        fetched(product)


def test_from_a_bucket_without_telling_anybody_the_keys(
    launch: Callable[..., Product], files: dict[str, bytes]
) -> None:
    with running_bucket() as bucket:
        for name, content in files.items():
            bucket.put(f"voice/models/distilbert-onnx/{name}", content)
        product = launch(
            S3_BUCKET_NAME="bucket",
            S3_MODEL_PREFIX="voice/models/",
            S3_REGION=REGION,
            S3_ENDPOINT_URL=bucket.url,
            S3_ACCESS_KEY_ID=KEY_ID,
            S3_SECRET_ACCESS_KEY=SECRET,
        )
        fetched(product)
        for path in ("/models", "/models/distilbert-onnx", "/health", "/api/v1/model/info", "/metrics"):
            body = product.call("GET", path).body.decode()
            assert KEY_ID not in body and SECRET not in body, path
        runners = product.runners()
        assert runners
        for runner in runners:
            environment = json.dumps(runner.environ())
            assert KEY_ID not in environment and SECRET not in environment and "S3_" not in environment
            assert SECRET not in " ".join(runner.cmdline())
        product.close()
        written = [path for path in product.home.rglob("*") if path.is_file() and path.stat().st_size < 10_000_000]
        assert any("sidecar.log" in path.name for path in written)
        for path in written:
            content = path.read_bytes()
            assert KEY_ID.encode() not in content and SECRET.encode() not in content, path


def test_nobody_says_where_it_is(launch: Callable[..., Product]) -> None:
    product = launch()
    for model in ("distilbert-onnx", "distilbert"):
        missing = product.call("GET", f"/models/{model}").json()["missing"]
        assert any("SIDECAR_BACKCHANNEL_MODEL" in each["cure"] for each in missing)
    refused = product.call("POST", "/api/v1/predict", {"utterance": "x", "model": "distilbert-onnx"})
    assert refused.status == 503 and "SIDECAR_BACKCHANNEL_MODEL" in refused.json()["detail"]
    refused = product.call("POST", "/models/distilbert-onnx/download")
    assert refused.status == 503 and refused.json()["code"] == "model_unavailable"
    assert "SIDECAR_BACKCHANNEL_MODEL does not say where it is" in refused.json()["detail"]


@pytest.mark.parametrize("place", ["http://example.com/model", "s3://", "a b c", "owner/name/other"])
def test_a_place_that_is_none_is_a_warning(launch: Callable[..., Product], place: str) -> None:
    health = launch(SIDECAR_BACKCHANNEL_MODEL=place).call("GET", "/health").json()
    assert health["status"] == "degraded" and any("SIDECAR_BACKCHANNEL_MODEL" in each for each in health["warnings"])


def test_a_folder_that_has_no_model_is_a_warning_until_it_has(
    launch: Callable[..., Product], files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    product = launch(SIDECAR_BACKCHANNEL_MODEL=str(folder))

    def warnings() -> str:
        return "\n".join(product.call("GET", "/health").json()["warnings"])

    assert product.handshake["phase"] == "degraded"
    assert f"SIDECAR_BACKCHANNEL_MODEL={folder}: there is no folder {folder}" in warnings()
    assert "there is no folder" in product.log()
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "distilbert-onnx: " in warnings() and "lacks config.json, tokenizer.json, model.onnx" in warnings()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert warnings() == ""
    until(lambda: product.call("GET", "/models/distilbert-onnx").json()["active_for"], "the model is noticed")
    check(product)
    product.wait("ready")


def test_a_model_that_does_not_fit_its_labels_is_named(
    launch: Callable[..., Product], files: dict[str, bytes], tmp_path: Path
) -> None:
    write_classifier(tmp_path / "distilbert", {"a": [1, 2, 3]})
    product = launch(SIDECAR_BACKCHANNEL_MODEL=str(tmp_path / "distilbert"))
    answer = product.call("POST", "/api/v1/predict", {"utterance": "x", "model": "distilbert-onnx"})
    assert answer.status == 503 and "with 2 labels" in answer.json()["detail"]
    assert product.call("POST", "/api/v1/predict", {"utterance": "x"}).json()["model_used"] == "minilm"
    [told] = [line for line in product.call("GET", "/health").json()["warnings"] if line.startswith("backchannel: ")]
    assert "with 2 labels" in told and "minilm answers in its place" in told


def add_torch(home: Path, python: Path) -> None:
    """The torch profile in a product's home, as its launcher leaves it; its files are those of `python`."""
    lock = (ROOT / "installer" / "profiles" / "torch.lock").read_bytes()
    folder = home / "env" / "torch-000000000000"
    folder.mkdir(parents=True)
    for path in python.parent.parent.iterdir():
        if path.name != STAMP:
            (folder / path.name).symlink_to(path)
    stamp = {"lock_sha256": hashlib.sha256(lock).hexdigest(), "finished_at": 1.0}
    (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")


@pytest.mark.slow
def test_through_torch(launch: Callable[..., Product], tmp_path: Path) -> None:
    python = torch_python()
    pairs = [("So then we turned LEFT", "Okay"), ("", "mm-hm"), ("Can you hold?", "okay then")]
    read = ["so then we turned left [SEP] okay", "mm-hm", "can you hold? [SEP] okay then"]
    folder = tmp_path / "distilbert"
    logits = make_classifier(python, folder, labels=["LABEL_0", "LABEL_1"], asked=read)
    product = launch(SIDECAR_BACKCHANNEL_MODEL=str(folder))
    add_torch(product.home, python)
    until(lambda: "distilbert" in product.call("GET", "/api/v1/model/info").json()["models"], "torch is seen")
    items = [{"utterance": utterance, "previous_utterance": previous} for previous, utterance in pairs]
    body = {"utterances": items, "model": "distilbert"}
    answer = product.call("POST", "/api/v1/predict/batch", body, timeout_s=120)
    assert answer.status == 200, answer
    for (other, label), prediction in zip(logits, answer.json()["predictions"], strict=True):
        assert prediction["model_used"] == "distilbert"
        probability = prediction["metadata"]["probabilities"]["backchannel"]
        assert probability == pytest.approx(1 / (1 + math.exp(other - label)), abs=1e-4)
