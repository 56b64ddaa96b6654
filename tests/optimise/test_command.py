"""`models optimise` as a user runs it: a trained torch classifier, its own process, a sidecar that runs beside it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sidecar.catalogue.catalogue import read_spec
from tests.load import Load
from tests.product import ROOT, Product, alive, until
from tests.torch_profile import LABELS, link_torch, make_classifier, torch_python

TOML = """
id = "mine"
title = "a torch classifier of one test"
capabilities = ["emotion"]
runtime = "torch"
profile = "torch"
licence = "MIT"
preference = 60
files = [{ path = "config.json" }, { path = "model.safetensors" }]

[source]
path = "%s"

[heads.emotion]
"""
TEXTS = ["I am so happy today!", "He read my diary out loud.", "The meeting starts at ten.", "Is somebody there? Help!"]


@pytest.fixture(scope="module")
def python() -> Path:
    return torch_python()


@pytest.fixture(scope="module")
def weights(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch") / "mine"
    make_classifier(python, folder, epochs=4, hidden=128)
    return folder


class Home:
    """A data folder with the torch profile and the model in it."""

    def __init__(self, path: Path, python: Path, weights: Path) -> None:
        self.path = path
        link_torch(path, python)
        (path / "catalogue").mkdir()
        (path / "catalogue" / "mine.toml").write_text(TOML % weights.as_posix(), encoding="utf-8")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
        self.env = {**kept, "SIDECAR_HOME": str(path), "PYTHONPATH": str(ROOT)}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sidecar", "models", *words]

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*words), env=self.env, capture_output=True, text=True, timeout=280)

    def made(self) -> list[str]:
        """What is left in the folder of made models."""
        return sorted(path.name for path in (self.path / "cache" / "optimised").glob("*"))

    def entries(self) -> list[str]:
        return sorted(path.name for path in (self.path / "catalogue").glob("*.toml"))


@pytest.fixture
def home(tmp_path: Path, python: Path, weights: Path) -> Home:
    return Home(tmp_path / "home0", python, weights)


@pytest.mark.slow
def test_a_faster_model_takes_over_live_and_goes_again(home: Home, launch: Callable[..., Product]) -> None:
    product = launch()
    assert product.home == home.path
    load = Load(product)
    until(lambda: load.answered_by("mine"), "the torch model answers", 120)
    before = {text: product.emotion(text).json() for text in TEXTS}
    done = home.run("optimise", "mine", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    new = result["made"]
    assert new in ("mine-int8", "mine-onnx") and result["capabilities"] == ["emotion"]
    agreement = result["agreement"][result["kept"]]
    assert agreement["texts"] >= 500 and agreement["same_label"] >= 0.99 and agreement["cosine_mean"] >= 0.985
    assert min(result["speedup"][result["kept"]].values()) >= 1.1
    assert done.stderr.splitlines()[0] == "[1/7] load" and "[7/7] measure" in done.stderr
    until(lambda: load.answered_by(new), "the new model answers, without a restart", 60)
    after = {text: product.emotion(text).json() for text in TEXTS}
    assert {text: answer["emotion"] for text, answer in after.items()} == {
        text: answer["emotion"] for text, answer in before.items()
    }
    for text in TEXTS:
        assert abs(after[text]["confidence"] - before[text]["confidence"]) < 0.05
    shown = product.call("GET", f"/models/{new}").json()
    assert shown["state"] == "ready" and shown["profile"] == "base" and shown["active_for"] == ["emotion"]
    spec = read_spec(home.path / "catalogue" / f"{new}.toml")
    assert spec.preference == 61 and spec.made_from == "mine" and spec.heads["emotion"].labels == ()
    assert {label["label"] for label in after[TEXTS[0]]["all_emotions"]} == set(LABELS)
    removed = home.run("rm", new)
    assert removed.returncode == 0 and "MB freed" in removed.stdout
    until(lambda: load.answered_by("mine"), "the original answers again", 60)
    assert home.entries() == ["mine.toml"] and home.made() == []
    answers = load.close()
    assert [answer for answer in answers if answer[0] != 200] == []


@pytest.fixture
def optimising(home: Home) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start the command, and wait until it has reached a step."""
    running: list[subprocess.Popen[str]] = []

    def start(step: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        one = subprocess.Popen(home.command("optimise", "mine"), env=home.env, stdout=pipe, stderr=pipe, text=True)
        running.append(one)
        assert one.stderr is not None
        said = ""
        while step not in said:
            said = one.stderr.readline()
            assert said, f"it ended before {step!r}"
        return one

    yield start
    for one in running:
        one.kill()
        one.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_what_is_interrupted_leaves_nothing_that_is_used(
    home: Home, optimising: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    stopped = optimising("check the export")
    worker = psutil.Process(stopped.pid).children()
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(30) == 130
    assert home.entries() == ["mine.toml"] and home.made() == []
    until(lambda: not any(map(alive, worker)), "the worker follows")
    killed = optimising("export")
    [child] = psutil.Process(killed.pid).children()
    killed.kill()
    until(lambda: not alive(child), "the worker follows")
    assert home.entries() == ["mine.toml"]
    assert "mine " in home.run("list").stdout and "mine-" not in home.run("list").stdout
    again = home.run("optimise", "mine")
    assert again.returncode == 0, again.stderr
    assert "mine: made mine-" in again.stdout and "% same label on " in again.stdout
    assert len(home.made()) == 1 and len(home.entries()) == 2


def test_what_cannot_be_optimised_says_why_and_what_to_do(home: Home, tmp_path: Path) -> None:
    other = home.run("optimise", "minilm")
    assert other.returncode == 1
    assert "'minilm' has the runtime onnx; only text classifiers of runtime torch are optimised" in other.stderr
    few = tmp_path / "few.txt"
    few.write_text("one\n", encoding="utf-8")
    assert "are too few" in home.run("optimise", "mine", "--texts", str(few)).stderr
    (home.path / "env" / "torch-0123456789ab" / "complete.json").unlink()
    told: dict[str, Any] = json.loads(home.run("optimise", "mine", "--json").stdout)
    assert told["error"]["code"] == "model_unavailable" and "install --with torch" in told["error"]["message"]
    assert home.entries() == ["mine.toml"] and home.made() == []


def test_a_folder_that_is_no_classifier_is_told_by_the_worker(home: Home, weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in weights.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps({**config, "dim": 64}), encoding="utf-8")
    (home.path / "catalogue" / "mine.toml").write_text(TOML % broken.as_posix(), encoding="utf-8")
    done = home.run("optimise", "mine")
    assert done.returncode == 1
    assert f"ml-sidecar: {broken}: the weights do not fit its config.json: " in done.stderr
    assert home.made() == []
