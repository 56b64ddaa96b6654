"""Entries of the user's own that come, change and go while the product runs, and downloads made beside it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.load import Load
from tests.product import ROOT, Product, until, write_fake, write_hub_fake


def test_an_entry_comes_changes_and_goes_without_a_failed_request(launch: Callable[..., Product]) -> None:
    product = launch()
    load = Load(product)
    until(lambda: load.answered_by("minilm"), "the embedded model answers")
    folder = product.home / "catalogue"
    write_fake(folder)
    until(lambda: load.answered_by("fake"), "the new entry answers", 30)
    first = product.runner("fake")
    assert first is not None
    write_fake(folder, item_s=0.001)
    until(lambda: (now := product.runner("fake")) is not None and now.pid != first.pid, "a runner of the new kind", 30)
    until(lambda: not first.is_running(), "the old one is gone", 30)
    assert load.answered_by("fake")
    (folder / "fake.toml").unlink()
    until(lambda: load.answered_by("minilm"), "the embedded model answers again", 30)
    assert product.call("GET", "/models/fake").status == 404
    answers = load.close()
    assert [answer for answer in answers if answer[0] != 200] == []


def test_an_entry_written_again_as_it_was_keeps_its_runner(launch: Callable[..., Product]) -> None:
    product = launch()
    folder = product.home / "catalogue"
    write_fake(folder)
    until(lambda: product.emotion("x").json().get("model") == "fake", "the new entry answers", 30)
    before = product.runner("fake")
    write_fake(folder)
    write_fake(folder, id="other", preference=1000)
    until(lambda: product.emotion("x").json().get("model") == "other", "the change has been seen", 30)
    assert product.call("POST", "/emotion/detect", {"text": "x", "model": "fake"}).status == 200
    assert product.runner("fake") == before


def test_a_bad_entry_is_told_everywhere_and_hides_nobody(launch: Callable[..., Product]) -> None:
    product = launch()
    folder = product.home / "catalogue"
    write_fake(folder)
    (folder / "copy.toml").write_text((folder / "fake.toml").read_text())
    (folder / "typo.toml").write_text((folder / "fake.toml").read_text().replace('"fake"', '"typo"', 1) + "[[[")
    until(lambda: product.emotion("x").json().get("model") == "fake", "the good one answers", 30)
    faults = {fault["file"]: fault for fault in product.call("GET", "/models").json()["faults"]}
    assert set(faults) == {str(folder / "copy.toml"), str(folder / "typo.toml")}
    told = faults[str(folder / "copy.toml")]
    assert told["id"] == "fake" and str(folder / "fake.toml") in told["reason"]
    warnings = product.call("GET", "/health").json()["warnings"]
    assert all(fault["reason"] in warnings for fault in faults.values())
    until(lambda: all(fault["reason"] in product.log() for fault in faults.values()), "the log has it")
    missing = product.call("GET", "/models/typo")
    assert missing.status == 404 and "typo.toml" in missing.json()["detail"]
    (folder / "copy.toml").unlink()
    (folder / "typo.toml").unlink()
    until(lambda: product.call("GET", "/models").json()["faults"] == [], "they are gone", 30)
    assert product.call("GET", "/health").json()["status"] == "healthy"


@pytest.mark.e2e
def test_a_download_by_another_process_takes_over(launch: Callable[..., Product], tmp_path: Path) -> None:
    with Hub() as hub:
        hub.add("tiny/pulled", {"weights.safetensors": b"\0" * 100_000})
        product = launch(HF_ENDPOINT=hub.url)
        (product.home / "catalogue").mkdir()
        write_hub_fake(product.home / "catalogue", "pulled")
        until(lambda: product.call("GET", "/models/pulled").status == 200, "the entry is known", 30)
        assert product.emotion("x").json()["model"] == "minilm"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SIDECAR_", "HF_"))}
        env = {**kept, "SIDECAR_HOME": str(product.home), "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url}
        pull = [sys.executable, "-m", "sidecar", "models", "pull", "pulled"]
        assert subprocess.run(pull, env=env, capture_output=True, timeout=60).returncode == 0
        until(lambda: product.emotion("x").json().get("model") == "pulled", "what was pulled answers", 30)
