"""What tests need of the torch profile: its interpreter, and tiny models made by it in the real format."""

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar.catalogue.profiles import BUILT_IN, STAMP, Profiles
from sidecar.errors import ProfileMissingError
from sidecar.settings import Settings
from tests.product import ROOT

MAKER = ROOT / "tests" / "fixtures" / "tiny_classifier.py"
DATA = ROOT / "models" / "build" / "data"
LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


def torch_python() -> Path:
    """Interpreter of the torch profile: SIDECAR_TEST_TORCH_PYTHON, else the installed one. Skips without either."""
    if named := os.environ.get("SIDECAR_TEST_TORCH_PYTHON"):
        return Path(named)
    try:
        return Profiles.of(Settings.load()).python("torch")
    except ProfileMissingError as error:
        import pytest  # which benchmarks do without

        pytest.skip(f"needs the torch profile: {error.message}")


def link_torch(home: Path, python: Path) -> None:
    """Have the torch profile installed in `home`: the same environment, under the stamp of the present lock."""
    root = python.parent.parent
    made = home / "env" / "torch-0123456789ab"
    made.mkdir(parents=True)
    for path in root.iterdir():
        if path.name != STAMP:
            (made / path.name).symlink_to(path)
    lock = (BUILT_IN / "torch.lock").read_text(encoding="utf-8")
    stamp = {"lock_sha256": hashlib.sha256(lock.encode()).hexdigest(), "finished_at": 1.0}
    (made / STAMP).write_text(json.dumps(stamp), encoding="utf-8")


def write_texts(path: Path, labels: Sequence[str] = LABELS, each: int = 400) -> Path:
    """The sentences that the embedded model is built from, as lines of label and text."""
    rows = []
    for label in labels:
        lines = (DATA / f"emotion_{label}.txt").read_text(encoding="utf-8").splitlines()[:each]
        rows += [f"{label}\t{line}" for line in lines]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def make_classifier(python: Path, folder: Path, **job: Any) -> list[list[float]]:
    """Write a tiny classifier into `folder`; returns its logits for the texts in `asked`, computed one by one."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = job.pop("texts", None) or write_texts(folder.parent / f"{folder.name}.texts")
    defaults = {"family": "distilbert", "weights": "safetensors", "labels": list(LABELS), "texts": str(texts)}
    done = subprocess.run(
        [str(python), str(MAKER), json.dumps({**defaults, "folder": str(folder), **job})],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return answers
