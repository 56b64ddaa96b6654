"""Forced alignment on the acoustic model and the dictionary of the pocketsphinx wheel.

The wheel's own aligner is not used: its second pass ends in an error wherever the first put silence, and gives no
confidence. `sidecar.runner.alignment` searches the same model itself.
"""

from pathlib import Path

import numpy as np
import pocketsphinx

from sidecar.capabilities.align import Alignment, Spoken
from sidecar.capabilities.phones import to_ipa
from sidecar.catalogue.spec import ModelSpec
from sidecar.runner.adapters import Report
from sidecar.runner.alignment.aligner import AlignedWord, Aligner
from sidecar.runner.alignment.features import SAMPLE_RATE, Floats


class AlignmentAdapter:
    """Offers `Aligns`."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "the alignment is computed on the CPU"

    def load(self, report: Report) -> None:
        folder = Path(pocketsphinx.get_model_path("en-us"))
        self._aligner = Aligner(folder / "en-us", folder / "cmudict-en-us.dict")
        self.align(np.zeros(SAMPLE_RATE, np.float32), "warm up")

    def align(self, samples: Floats, text: str) -> Alignment:
        found = self._aligner.align(samples, text)
        return Alignment(
            words=[_spoken(word) for word in found.words],
            confidence=found.confidence,
            duration_s=len(samples) / SAMPLE_RATE,
        )


def _spoken(word: AlignedWord) -> Spoken:
    phones = [(each.name, to_ipa(each.name), each.start_s, each.end_s, each.confidence) for each in word.phones]
    return Spoken(word=word.text, confidence=word.confidence, phones=phones)
