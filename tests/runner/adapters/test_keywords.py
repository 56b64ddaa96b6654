"""The keyword table as a model, and that it is the one that models/build measures."""

import csv
import math
import subprocess
import sys
from typing import Any

import pytest

from sidecar.catalogue.catalogue import BUILT_IN, Catalogue, ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import make_adapter
from sidecar.settings import ROOT

SPEC = Catalogue([BUILT_IN]).get("baseline")


def loaded(spec: ModelSpec = SPEC) -> Any:
    adapter: Any = make_adapter(spec, threads=1, device="cpu")
    adapter.load(lambda item, done, total, unit: None)
    return adapter


@pytest.mark.parametrize(
    ("utterance", "matched"),
    [
        ("mm-hm", True),
        ("Oh, WOW!", True),
        ("oh no way", True),
        ("right right… I see", True),
        ("yeah but the contract says thirty days", False),
        ("no", False),
        ("", False),
        ("😀 שלום", False),
        ("oh wow " * 5000 + "x", False),
    ],
)
def test_nothing_but_phrases_is_matched(utterance: str, matched: bool) -> None:
    logits = loaded().classify([("whatever was said before", utterance)], "backchannel")[0]
    assert math.exp(logits[1]) == pytest.approx(0.69 if matched else 0.41)
    assert math.exp(logits[0]) + math.exp(logits[1]) == pytest.approx(1)


def test_the_probabilities_are_those_of_the_training_lines() -> None:
    path = ROOT / "models" / "build" / "data" / "backchannel.tsv"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    logits = loaded().classify([(row["previous"], row["utterance"]) for row in rows], "backchannel")
    for matched, name in ((True, "matched"), (False, "unmatched")):
        labels = [row["label"] == "1" for row, pair in zip(rows, logits, strict=True) if (pair[1] > pair[0]) == matched]
        assert sum(labels) / len(labels) == pytest.approx(SPEC.options[name], abs=0.005)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="models/build needs Python 3.11")
def test_models_build_measures_the_same_table() -> None:
    code = "import baselines; print([baselines.backchannel(t) for t in ('oh wow', 'oh no way', 'well, yeah', '')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "models/build", capture_output=True, text=True)
    assert done.stdout.strip() == "[True, True, False, False]", done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [({"phrases": []}, "phrases"), ({"matched": 1.0}, "between 0 and 1"), ({"label": None}, "options.label")],
)
def test_a_table_that_cannot_answer_is_named(options: dict[str, Any], told: str) -> None:
    changed = {key: value for key, value in {**SPEC.options, **options}.items() if value is not None}
    with pytest.raises(ModelLoadError, match=told):
        loaded(SPEC.model_copy(update={"options": changed}))
