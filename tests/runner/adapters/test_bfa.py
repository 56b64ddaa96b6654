"""The Bournemouth Forced Aligner's adapter.

What it makes of the package's output is tested everywhere, on an output of the real one. The package itself (GPL, with
torch 5.6 GB) is tested with a model of random weights in its format where SIDECAR_TEST_BFA_PYTHON names an interpreter
that has it; `.ci/run` installs no such profile.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from sidecar.runner.adapters.bfa import _spoken, _words
from tests.product import ROOT

PYTHON = os.environ.get("SIDECAR_TEST_BFA_PYTHON")

# Of bournemouth-forced-aligner 2.0.0 for "Hi, tables.", shortened to what is read.
SEGMENT = {
    "word_num": [0, 0, 1, 2, 2, 2, 2, 2, 2],
    "words": ["Hi", "<sil>", "tables"],
    "phoneme_ts": [
        {"phoneme_label": label, "ipa_label": ipa, "start_ms": start, "end_ms": start + 50.0, "confidence": 0.4,
         "target_seq_idx": target}
        for label, ipa, start, target in [
            ("h", "h", 0.0, 0), ("aɪ", "aɪ", 50.0, 1), ("SIL", "SIL", 100.0, 2), ("t", "t", 150.0, 3),
            ("eɪ", "eɪ", 200.0, 4), ("b", "b", 250.0, 5), ("ə", "əl", 300.0, 6), ("l", "-", 350.0, 7),
            ("z", "z", 400.0, 8),
        ]
    ],
}  # fmt: skip


def test_words_keep_their_apostrophes_and_punctuation_is_a_pause() -> None:
    assert _words("Don’t stop, they're 2 dogs!") == ["Don't", "stop", "<SIL>", "they're", "2", "dogs", "<SIL>"]
    assert _words("anti" * 40) == ["anti" * 25, "anti" * 15], "the library behind it dies of longer ones"
    assert _words("snake_case & rock-n-roll") == ["snake", "case", "rock", "n", "roll"]


def test_its_output_becomes_words_and_phones_without_pauses() -> None:
    words = _spoken(SEGMENT)
    assert [(word["word"], word["confidence"]) for word in words] == [("Hi", 0.4), ("tables", pytest.approx(0.4))]
    assert [phone[:2] for phone in words[0]["phones"]] == [("HH", "h"), ("AY", "aɪ")]
    assert [phone[:2] for phone in words[1]["phones"]] == [
        ("T", "t"), ("EY", "eɪ"), ("B", "b"), ("AH", "əl"), ("L", "l"), ("Z", "z"),
    ]  # fmt: skip
    assert words[1]["phones"][0][2:4] == (0.15, 0.2)


if PYTHON:

    def test_the_package_aligns_with_random_weights_in_its_format(tmp_path: Path) -> None:
        maker = ROOT / "tests" / "fixtures" / "tiny_bfa.py"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [str(PYTHON), str(maker), str(tmp_path)], env=env, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["device"] == "cpu" and found["words"] == ["Hello", "don't", "stop"]
        assert found["phones"][:4] == ["HH", "AH", "L", "OW"]
        assert found["in_order"] and 0 < found["confidence"] < 0.2
        assert found["long"] == [100, 60]
        assert found["refused"] == ["nothing", "too short"]
