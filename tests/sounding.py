"""Tiny wav2vec 2.0 classifiers, made by the torch profile in the real formats."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.product import ROOT
from tests.sound import RATE

MAKER = ROOT / "tests" / "fixtures" / "tiny_wav2vec2.py"
LABELS = ("neu", "hap", "ang", "sad")
SECONDS = (0.5, 1.0, 2.7)


def clip(seconds: float) -> Any:
    """The rising tone that the maker lets transformers hear."""
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * times) * times)).astype(np.float32)


def make_listener(python: Path, folder: Path, **job: Any) -> list[list[float]]:
    """Write a classifier into `folder`; returns its probabilities for clips of the lengths in `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(python), str(MAKER), json.dumps({"labels": list(LABELS), "folder": str(folder), **job})],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return answers
