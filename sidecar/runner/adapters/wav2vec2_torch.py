"""wav2vec 2.0 classifiers computed by torch."""

from typing import Any

import numpy as np

from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.runner.adapters import Report
from sidecar.runner.adapters.torch import TorchAdapter


class TorchBackend(TorchAdapter):
    """What `TorchAdapter` does with a folder and a device, for a model that hears instead of reading."""

    model_class = "AutoModelForAudioClassification"

    def load(self, report: Report) -> None:
        safe = self._has_safe_weights()
        transformers = self._import_libraries(report)
        report("weights", 2, 4, "steps")
        self.model = self._read_model(transformers, safe)
        report("warm up", 3, 4, "steps")
        self._place()

    def logits(self, values: Any) -> Any:
        with self._naming_exhaustion(), self._torch.inference_mode():
            found = self.model(input_values=self._torch.from_numpy(values).to(self.device)).logits
            return found.float().cpu().numpy().astype(np.float32, copy=False)

    def _warm_up(self) -> None:
        self.logits(np.zeros((1, SAMPLE_RATE), np.float32))
