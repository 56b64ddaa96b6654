"""Runtimes. A new runtime is one file and one line in ADAPTERS."""

from importlib import import_module
from typing import Protocol

from sidecar.catalogue.spec import ModelSpec

# Module and class by runtime name; imported only in the runner that needs it.
ADAPTERS = {
    "bfa": ("sidecar.runner.adapters.bfa", "BfaAdapter"),
    "espeak": ("sidecar.runner.adapters.espeak", "EspeakAdapter"),
    "kokoro": ("sidecar.runner.adapters.kokoro", "KokoroAdapter"),
    "alignment": ("sidecar.runner.adapters.alignment", "AlignmentAdapter"),
    "prosody": ("sidecar.runner.adapters.prosody", "ProsodyAdapter"),
    "wav2vec2": ("sidecar.runner.adapters.wav2vec2", "Wav2Vec2Adapter"),
    "parler": ("sidecar.runner.adapters.parler", "ParlerAdapter"),
    "piper": ("sidecar.runner.adapters.piper", "PiperAdapter"),
    "onnx": ("sidecar.runner.adapters.onnx", "OnnxAdapter"),
    "keywords": ("sidecar.runner.adapters.keywords", "KeywordsAdapter"),
    "torch": ("sidecar.runner.adapters.torch", "TorchAdapter"),
    "silero": ("sidecar.runner.adapters.silero", "SileroAdapter"),
    "ctranslate2": ("sidecar.runner.adapters.ctranslate2", "WhisperAdapter"),
    "pocketsphinx": ("sidecar.runner.adapters.pocketsphinx", "PocketsphinxAdapter"),
    "ffmpeg": ("sidecar.runner.adapters.ffmpeg", "FfmpegAdapter"),
    "fake": ("sidecar.runner.adapters.fake", "FakeAdapter"),
}


class Report(Protocol):
    """How a load tells that it is getting on; extends the READY deadline."""

    def __call__(self, item: str, done: int, total: int, unit: str) -> None: ...


class Adapter(Protocol):
    """A loaded model. What else it offers is for the capabilities it serves (`TextClassifier` and the like)."""

    device: str
    device_reason: str

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None: ...

    def load(self, report: Report) -> None:
        """Load and warm up. Raises any exception; its text is what the user reads."""


class BaseAdapter:
    """What an adapter is told; `load` sets `device` and `device_reason` to the truth."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "not loaded yet"
        self._spec = spec
        self._threads = threads
        self._wanted = device


def make_adapter(spec: ModelSpec, threads: int, device: str) -> Adapter:
    """The adapter of the spec's runtime, not yet loaded."""
    module, name = ADAPTERS[spec.runtime]
    adapter: Adapter = getattr(import_module(module), name)(spec, threads, device)
    return adapter
