"""The model as every peer serves it: our runner's session options, tokenizer settings and response content.

Runs in the peers' environment, so it imports nothing of ours. What to load comes as JSON in BENCHMARK_MODEL
(benchmarks/peers/contestants.py writes it).
"""

import json
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

BAD_TEXT = "!fail"


class Model(Protocol):
    """Classifies texts: one response body per text, in order."""

    def classify(self, texts: Sequence[str]) -> list[dict[str, Any]]: ...


class OnnxModel:
    """The ONNX graph beside its tokenizer; the options are those of sidecar/runner/adapters/onnx.py."""

    def __init__(self, config: dict[str, Any]) -> None:
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        self._np = numpy
        self._labels: list[str] = config["labels"]
        self._output: str = config["output"]
        self._tokenizer = Tokenizer.from_file(config["tokenizer"])
        self._tokenizer.enable_truncation(config["window"])
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(config["graph"], options, providers=["CPUExecutionProvider"])
        self._inputs = [node.name for node in self._session.get_inputs()]
        # The branches of the graph that this head does not need are left out, as in ours.
        self._switches = {name: numpy.array(value) for name, value in config["switches"].items()}

    def probabilities(self, texts: Sequence[str]) -> Any:
        """Float64 array of shape (len(texts), labels)."""
        np = self._np
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        feeds = {name: np.array(columns[name], dtype=np.int64) for name in self._inputs} | self._switches
        logits = self._session.run([self._output], feeds)[0].astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def classify(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        probabilities = self.probabilities(texts)
        order = self._np.argsort(-probabilities, axis=1, kind="stable")
        took_ms = round((time.perf_counter() - started) * 1000, 3)
        return [
            _response([(self._labels[i], round(float(row[i]), 6)) for i in ranked], took_ms)
            for row, ranked in zip(probabilities, order, strict=True)
        ]


class FailingModel:
    """No model: takes `item_s` per text and raises on BAD_TEXT, as our fake runtime does."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._labels: list[str] = config["labels"]
        self._item_s: float = config["item_s"]

    def classify(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        if any(BAD_TEXT in text for text in texts):
            raise ValueError("the fake model was told to fail")
        time.sleep(self._item_s * len(texts))
        return [_response([(label, 1 / len(self._labels)) for label in self._labels], 0.0) for _ in texts]


def _response(scores: list[tuple[str, float]], took_ms: float) -> dict[str, Any]:
    return {
        "emotion": scores[0][0],
        "confidence": scores[0][1],
        "all_emotions": [{"label": label, "score": score} for label, score in scores],
        "processing_time_ms": took_ms,
        "model": "minilm",
    }


def load() -> Model:
    """The model that BENCHMARK_MODEL describes."""
    config = json.loads(os.environ["BENCHMARK_MODEL"])
    return FailingModel(config) if config["failing"] else OnnxModel(config)
