"""PyTorch's own environment, added while requests flow. It is made before the tests (`.ci/run`): it is large."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sidecar.catalogue.profiles import Profiles, cure
from sidecar.errors import ProfileMissingError
from sidecar.settings import Settings
from tests.load import Load
from tests.product import Product, until
from tests.torch_profile import LABELS, make_classifier

MODEL, TEXT = "in-torch", "I am so happy today!"
TOML = """
id = "{id}"
title = "tiny, made by the test"
capabilities = ["emotion"]
runtime = "torch"
profile = "torch"
licence = "none"
preference = 1000
folder = {folder}
files = [{{ path = "config.json" }}, {{ path = "tokenizer.json" }}, {{ path = "model.safetensors" }}]

[heads.emotion]
labels = {labels}
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    """Folder of the torch environment that the user's own launcher made."""
    try:
        return Profiles.of(Settings.load()).python("torch").parent.parent
    except ProfileMissingError as error:
        pytest.skip(f"needs the torch profile: {error.message}")


@pytest.fixture(scope="module")
def catalogue(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with one real model of PyTorch, preferred to all others; and what it makes of TEXT."""
    weights = tmp_path_factory.mktemp("weights") / "tiny"
    [logits] = make_classifier(environment / "bin" / "python", weights, asked=[TEXT])
    folder = tmp_path_factory.mktemp("catalogue")
    text = TOML.format(id=MODEL, folder=json.dumps(str(weights)), labels=json.dumps(list(LABELS)))
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return folder, LABELS[logits.index(max(logits))]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs links to folders, which Windows gives to few")
def test_torch_is_added_live(environment: Path, catalogue: tuple[Path, str], launch: Callable[..., Product]) -> None:
    folder, expected = catalogue
    product = launch(SIDECAR_CATALOGUE=str(folder))
    server = product.server()
    with Load(product) as load:
        until(lambda: load.answered_by("minilm"), "the embedded model answers")
        assert product.call("GET", f"/models/{MODEL}").json()["missing"][0]["cure"] == cure("torch")
        # What a launcher beside the product does last: from now on a finished environment is there.
        (product.home / "env").mkdir(exist_ok=True)
        link = product.home / "env" / environment.name
        link.symlink_to(environment)
        until(lambda: load.answered_by(MODEL), "the model that needs torch takes over", 120)
        runner = psutil.Process(product.call("GET", f"/models/{MODEL}").json()["pid"])
        assert runner.cmdline()[0] == str(link / "bin" / "python")
        assert any("torch" in Path(each.path).name for each in runner.memory_maps()), "torch itself is in it"
        for model, emotion in ((MODEL, expected), ("minilm", "joy")):
            pinned = product.call("POST", "/emotion/detect", {"text": TEXT, "model": model}).json()
            assert (pinned["model"], pinned["emotion"]) == (model, emotion)
        # And gone again: the next best goes on.
        link.unlink()
        until(lambda: load.answered_by("minilm"), "the embedded model answers again", 60)
    assert [answer for answer in load.answers if answer[0] != 200] == []
    assert product.server().pid == server.pid
    print(f"0 of {len(load.answers)} requests failed")
