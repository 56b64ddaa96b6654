"""wav2vec 2.0 and its kin (HuBERT, WavLM) that classify a recording: an ONNX export, or a folder of transformers.

Which of the two, the entry's files say; the first runs on ONNX Runtime, the second on torch. Beside the weights lie
`config.json` (the labels) and `preprocessor_config.json` (the rate, and whether the samples are to be normalised).
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.adapters.heads import LoadedHeads

Floats = NDArray[np.float32]

_WINDOW_S = 20.0
# The convolutions see 25 ms at least; less than this is not worth an answer either.
_SHORTEST = SAMPLE_RATE // 10
_EPSILON = 1e-7  # of Wav2Vec2FeatureExtractor


class Backend(Protocol):
    """Where the network is computed."""

    device: str
    device_reason: str

    def load(self, report: Report) -> None: ...

    def logits(self, values: Floats) -> Floats:
        """(1, samples) → (1, labels)."""


class Wav2Vec2Adapter:
    """Offers `SoundClassifier`. `options.window_s` is the longest stretch that the network hears at once (20 s)."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self._spec = spec
        exported = spec.graph is not None
        self._backend: Backend = (_onnx if exported else _torch)(spec, threads, device)
        self._window = int(float(spec.options.get("window_s", _WINDOW_S)) * SAMPLE_RATE)

    @property
    def device(self) -> str:
        return self._backend.device

    @property
    def device_reason(self) -> str:
        return self._backend.device_reason

    def load(self, report: Report) -> None:
        if missing := self._spec.missing_files():
            raise ModelLoadError(f"{self._spec.folder} lacks {', '.join(missing)}")
        if headless := set(self._spec.capabilities) - self._spec.heads.keys():
            raise ModelLoadError(f"model {self._spec.id!r} lacks a head for {', '.join(sorted(headless))} in its TOML")
        self._heads = LoadedHeads(self._spec)
        self._normalised = self._reads_normalised()
        self._backend.load(report)
        count = self._backend.logits(np.zeros((1, SAMPLE_RATE), np.float32)).shape[1]
        for name in self._spec.heads:
            if len(self._heads.labels(name)) != count:
                raise ModelLoadError(f"head {name!r} has {len(self._heads.labels(name))} labels, the model {count}")

    def labels(self, head: str) -> tuple[str, ...]:
        return self._heads.labels(head)

    def listen(self, samples: Floats, head: str) -> Floats:
        """Probabilities, (labels,): the mean over windows of equal length. One at a time, unpadded: the first layer of
        the base models normalises over time, so that silence put behind a recording would change all of it."""
        rows = [_softmax(self._backend.logits(self._prepared(window))[0]) for window in self._windows(samples)]
        return np.asarray(np.mean(rows, axis=0), np.float32)

    def _windows(self, samples: Floats) -> Iterator[Floats]:
        if len(samples) < _SHORTEST:
            samples = np.pad(samples, (0, _SHORTEST - len(samples)))
        yield from np.array_split(samples, -(-len(samples) // self._window))

    def _prepared(self, samples: Floats) -> Floats:
        if self._normalised:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(_EPSILON))
        return np.asarray(samples[None], np.float32)

    def _reads_normalised(self) -> bool:
        path = self._spec.folder / "preprocessor_config.json"
        try:
            told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            rate, normalised = int(told.get("sampling_rate", SAMPLE_RATE)), bool(told.get("do_normalize", True))
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{path}: {error}") from None
        if rate != SAMPLE_RATE:
            raise ModelLoadError(f"{path}: the model hears {rate} samples a second; only {SAMPLE_RATE} are offered")
        return normalised


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum(), np.float32)


def _onnx(spec: ModelSpec, threads: int, device: str) -> Backend:
    return _OnnxBackend(spec, threads, device)


def _torch(spec: ModelSpec, threads: int, device: str) -> Backend:
    # Imported here: its base class belongs to the torch profile, where alone it is needed.
    from sidecar.runner.adapters.wav2vec2_torch import TorchBackend

    return TorchBackend(spec, threads, device)


class _OnnxBackend(BaseAdapter):
    """A graph with `input_values` (batch, samples) and perhaps `attention_mask`; its first output are the logits."""

    def load(self, report: Report) -> None:
        from sidecar.runner.session import graph_of, open_session

        graph = graph_of(self._spec)
        opened = open_session(graph, self._threads, self._wanted)
        self._session, self.device, self.device_reason = opened
        inputs = {node.name for node in self._session.get_inputs()}
        if not {"input_values"} <= inputs <= {"input_values", "attention_mask"}:
            raise ModelLoadError(
                f"{graph.name} is no export of such a model: its inputs are {', '.join(sorted(inputs))}"
            )
        self._masked = "attention_mask" in inputs

    def logits(self, values: Floats) -> Floats:
        feeds: dict[str, Any] = {"input_values": values}
        if self._masked:
            feeds["attention_mask"] = np.ones(values.shape, np.int64)
        return np.asarray(self._session.run(None, feeds)[0], np.float32)
