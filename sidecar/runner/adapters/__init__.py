"""Runtimes. A new runtime is one file and one line in ADAPTERS."""

from importlib import import_module
from typing import Protocol

from sidecar.catalogue.catalogue import ModelSpec

# Module and class by runtime name; imported only in the runner that needs it.
ADAPTERS = {
    "onnx": ("sidecar.runner.adapters.onnx", "OnnxAdapter"),
    "fake": ("sidecar.runner.adapters.fake", "FakeAdapter"),
}


class Report(Protocol):
    """How a load tells that it is getting on; extends the READY deadline."""

    def __call__(self, item: str, done: int, total: int, unit: str) -> None: ...


class Adapter(Protocol):
    """A loaded model. What else it offers is for the capabilities it serves (`TextClassifier` and the like)."""

    device: str
    device_reason: str

    def __init__(self, spec: ModelSpec, threads: int) -> None: ...

    def load(self, report: Report) -> None:
        """Load and warm up. Raises any exception; its text is what the user reads."""


def make_adapter(spec: ModelSpec, threads: int) -> Adapter:
    """The adapter of the spec's runtime, not yet loaded."""
    module, name = ADAPTERS[spec.runtime]
    adapter: Adapter = getattr(import_module(module), name)(spec, threads)
    return adapter
