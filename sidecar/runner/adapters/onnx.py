"""Text models on ONNX Runtime: any exported encoder with a `tokenizer.json` beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from sidecar.catalogue.catalogue import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import Report

# The graph's input and what of an encoding it takes.
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class OnnxAdapter:
    """Inputs are taken by name from input_ids, attention_mask, token_type_ids: int64, (batch, sequence)."""

    def __init__(self, spec: ModelSpec, threads: int) -> None:
        self.device = "cpu"
        self.device_reason = "the embedded and base-profile models run on the CPU"
        self._spec = spec
        self._threads = threads

    def load(self, report: Report) -> None:
        if missing := self._spec.missing_files():
            raise ModelLoadError(f"{self._spec.folder} lacks {', '.join(missing)}")
        self._tokenizer = Tokenizer.from_file(str(self._spec.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(self._spec.window)
        self._tokenizer.enable_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; the warnings are about switches that are meant
        # Spinning threads would burn the host app's cores between two batches.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        graph = next(file.path for file in self._spec.files if file.path.endswith(".onnx"))
        self._session = ort.InferenceSession(
            str(self._spec.folder / graph), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [node.name for node in self._session.get_inputs() if node.name in _TOKENS]
        self._check_heads()
        # ONNX Runtime computes every branch of a graph, whichever output is asked for; the switches leave some out.
        self._switches = {
            name: {key: np.array(value) for key, value in head.inputs.items()}
            for name, head in self._spec.heads.items()
        }
        for head in self._spec.heads:
            self.classify(["warm up"], head)

    def _check_heads(self) -> None:
        outputs = {node.name: node.shape[-1] for node in self._session.get_outputs()}
        for name, head in self._spec.heads.items():
            if outputs.get(head.output) != len(head.labels):
                raise ModelLoadError(
                    f"head {name!r} wants {head.output!r} with {len(head.labels)} labels; the graph has {outputs}"
                )

    def labels(self, head: str) -> Sequence[str]:
        return self._spec.heads[head].labels

    def classify(self, texts: Sequence[str] | Sequence[tuple[str, str]], head: str) -> Any:
        feeds = self._encode(texts) | self._switches[head]
        return self._session.run([self._spec.heads[head].output], feeds)[0]

    def _encode(self, texts: Sequence[Any]) -> dict[str, Any]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return {
            name: np.array([getattr(encoding, _TOKENS[name]) for encoding in encodings], dtype=np.int64)
            for name in self._inputs
        }
