"""A speech emotion model as a user gets it: from the hub into the cache, loaded, and live in place of the baseline."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.catalogue.catalogue import BUILT_IN
from tests.hub import Hub
from tests.product import ROOT, Product, until
from tests.server.test_own_backchannel import add_torch
from tests.server.test_recordings import encoded
from tests.sound import wav
from tests.sounding import clip, make_listener
from tests.torch_profile import torch_python

pytestmark = pytest.mark.e2e

ONNX = """
id = "tiny-ear"
title = "a speech emotion model of one test"
capabilities = ["speech_emotion"]
runtime = "wav2vec2"
licence = "Apache-2.0"
preference = 40
files = [{ path = "model.onnx" }, { path = "config.json" }, { path = "preprocessor_config.json" }]

[source]
repo = "acme/tiny-ear"

[heads.speech_emotion]
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    return folder


def files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def hears(product: Product) -> Any:
    """The answer to a clip of 2.7 s, and its scores by label."""
    answer = product.call("POST", "/speech-emotion/detect", {"audio": encoded(wav(clip(2.7)))}, timeout_s=120).json()
    return answer["model"], {each["label"]: each["score"] for each in answer["all_emotions"]}


def test_an_exported_model_takes_over_live(
    launch: Callable[..., Product], hub: Hub, catalogue: Path, tmp_path: Path
) -> None:
    expected = make_listener(torch_python(), tmp_path / "made", onnx=True, seconds=[2.7])
    hub.add("acme/tiny-ear", files(tmp_path / "made", "model.onnx", "config.json", "preprocessor_config.json"))
    (catalogue / "ear.toml").write_text(ONNX, encoding="utf-8")
    product = launch(SIDECAR_CATALOGUE=str(catalogue), HF_ENDPOINT=hub.url)
    assert hears(product)[0] == "prosody"
    assert product.call("POST", "/models/tiny-ear/download").status == 202
    until(lambda: hears(product)[0] == "tiny-ear", "the new model to answer")
    _, scores = hears(product)
    # Through a file of 16 bits, hence not to the last digit.
    assert scores == pytest.approx(
        dict(zip(("neutral", "joy", "anger", "sadness"), expected[0], strict=True)), abs=0.01
    )
    assert product.call("DELETE", "/models/tiny-ear").status == 200
    assert hears(product)[0] == "prosody"


@pytest.mark.slow
def test_the_published_format_runs_on_torch_once_its_pickle_is_allowed(
    launch: Callable[..., Product], hub: Hub, catalogue: Path, tmp_path: Path
) -> None:
    """The built-in entry as it is, but for repository and commit: config, preprocessor, and a pickle of 2021."""
    python = torch_python()
    expected = make_listener(python, tmp_path / "made", weights="bin", seconds=[2.7])
    hub.add("acme/er", files(tmp_path / "made", "pytorch_model.bin", "config.json", "preprocessor_config.json"))
    entry = (BUILT_IN / "wav2vec2-superb-er.toml").read_text(encoding="utf-8")
    kept = [line for line in entry.splitlines() if not line.startswith("revision")]
    text = "\n".join(kept).replace("superb/wav2vec2-base-superb-er", "acme/er").replace("wav2vec2-superb-er", "tiny-er")
    (catalogue / "er.toml").write_text(text, encoding="utf-8")
    product = launch(SIDECAR_CATALOGUE=str(catalogue), HF_ENDPOINT=hub.url)
    add_torch(product.home, python)
    refused = product.call("POST", "/models/tiny-er/download")
    assert refused.status == 403 and refused.json()["code"] == "pickle_refused"
    pull = [sys.executable, "-m", "sidecar", "models", "pull", "tiny-er", "--allow-pickle", "pytorch_model.bin"]
    environment = {"SIDECAR_HOME": str(product.home), "SIDECAR_CATALOGUE": str(catalogue), "HF_ENDPOINT": hub.url}
    done = subprocess.run(pull, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    until(lambda: not product.call("GET", "/models/tiny-er").json()["missing"], "download and environment to be seen")
    loaded = product.call("POST", "/models/tiny-er/load", timeout_s=120)
    assert loaded.status == 200, (loaded.body, product.log()[-2000:])
    body = {"audio": encoded(wav(clip(2.7))), "model": "tiny-er"}
    answer = product.call("POST", "/speech-emotion/detect", body, timeout_s=120).json()
    scores = {each["label"]: each["score"] for each in answer["all_emotions"]}
    assert scores == pytest.approx(
        dict(zip(("neutral", "joy", "anger", "sadness"), expected[0], strict=True)), abs=0.01
    )
