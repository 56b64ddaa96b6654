"""The part that runs in the torch environment: the int8 graph itself, and what happens when int8 is too coarse."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.catalogue.spec import ModelSpec
from sidecar.optimise import texts
from sidecar.runner.adapters import make_adapter
from tests.product import ROOT
from tests.torch_profile import LABELS, make_classifier, torch_python

# Stricter than the product is, so that int8 everywhere is not good enough.
STRICT = "from sidecar.optimise import compare, worker; compare.LEAST_COSINE = 0.999999; worker.main([])"
USUAL = "from sidecar.optimise import worker; worker.main([])"
CODES = {"usual": USUAL, "strict": STRICT}


@pytest.fixture(scope="module")
def python() -> Path:
    return torch_python()


@pytest.fixture(scope="module")
def weights(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch") / "roberta"
    make_classifier(python, folder, family="roberta", hidden=128, vocabulary=9000)
    return folder


def optimise(python: Path, code: str, weights: Path, folder: Path) -> list[dict[str, Any]]:
    """The events of a worker whose job is `weights`; the candidates stay in `folder`."""
    spec = ModelSpec.model_validate(
        {
            "id": "mine",
            "title": "t",
            "capabilities": ["emotion"],
            "runtime": "torch",
            "profile": "torch",
            "licence": "MIT",
            "folder": weights,
            "heads": {"emotion": {}},
        }
    )
    ours = texts.read()
    job = {"spec": spec.model_dump(mode="json"), "folder": str(folder), "device": "cpu"}
    job |= {"texts": ours.judged, "calibration": ours.calibration}
    folder.mkdir()
    process = subprocess.Popen(
        [str(python), "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    events = [json.loads(line) for line in process.stdout]
    process.communicate(timeout=30)
    return events


def classify(folder: Path, batches: list[list[str]]) -> Any:
    files = ({"path": "model.onnx"},)
    spec = ModelSpec.model_validate(
        {
            "id": "made",
            "title": "t",
            "capabilities": ["emotion"],
            "runtime": "onnx",
            "licence": "MIT",
            "folder": folder,
            "files": files,
            "heads": {"emotion": {"labels": LABELS}},
            "window": 64,
        }
    )
    adapter: Any = make_adapter(spec, 1, "cpu")
    adapter.load(lambda *_: None)
    return np.concatenate([adapter.classify(batch, "emotion") for batch in batches])


@pytest.fixture(scope="module")
def made(python: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "usual"
    *_, result = optimise(python, CODES["usual"], weights, folder)
    assert result["event"] == "result" and result["agreement"]["int8"]["texts"] >= 500
    return folder


def test_int8_answers_as_fp32_and_is_a_quarter_of_it(made: Path) -> None:
    batches = [texts.read().judged[start : start + 16] for start in range(0, 160, 16)]
    exact, int8 = classify(made / "onnx", batches), classify(made / "int8", batches)
    assert np.abs(exact - int8).max() < 0.05 * np.abs(exact).max() and not np.array_equal(exact, int8)
    sizes = [(made / kind / "model.onnx").stat().st_size for kind in ("onnx", "int8")]
    assert sizes[1] < 0.4 * sizes[0]


def test_a_text_does_not_feel_what_shares_its_batch(made: Path) -> None:
    together = texts.read().judged[:24]
    alone = classify(made / "int8", [[text] for text in together])
    assert np.allclose(classify(made / "int8", [together]), alone, atol=2e-3)


def test_what_is_too_coarse_keeps_its_sensitive_layers_in_fp32(python: Path, weights: Path, tmp_path: Path) -> None:
    *steps, result = optimise(python, CODES["strict"], weights, tmp_path / "strict")
    items = [step["item"] for step in steps]
    assert "quantise (12 of 12 products)" in items and "find sensitive layers (12 of 12)" in items
    assert "quantise (10 of 12 products)" in items
    assert result["event"] == "result" and 2 <= len(set(result["kept_in_fp32"])) <= 6
    cosine = result["agreement"]["int8"]["cosine_mean"]
    assert result["kept"] != "int8" or cosine >= 0.999999
    assert "int8" in result["statement"] and (cosine >= 0.999999 or "too far from the original" in result["statement"])
