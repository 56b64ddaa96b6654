"""Text models on ONNX Runtime: any exported encoder with a `tokenizer.json` beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from sidecar.catalogue.catalogue import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import Report


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
        # Spinning threads would burn the host app's cores between two batches.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        graph = next(file.path for file in self._spec.files if file.path.endswith(".onnx"))
        self._session = ort.InferenceSession(
            str(self._spec.folder / graph), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._check_heads()
        self._run_options = ort.RunOptions()
        # One graph holds several heads; compute only the branch that was asked for.
        self._run_options.only_execute_path_to_fetches = True
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
        feeds = self._encode(texts)
        return self._session.run([self._spec.heads[head].output], feeds, self._run_options)[0]

    def _encode(self, texts: Sequence[Any]) -> dict[str, Any]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return {name: np.array(columns[name], dtype=np.int64) for name in self._inputs}
