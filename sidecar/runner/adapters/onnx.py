"""Text models on ONNX Runtime: any exported encoder with a `tokenizer.json` beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.adapters.heads import Decision, LoadedHeads, read_config
from sidecar.runner.session import graph_of, open_session

EMBEDDINGS = "embeddings"
# The graph's input and what of an encoding it takes.
_TOKENS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_PADS = ("[PAD]", "<pad>")
_AFTER_PADDING = frozenset({"camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet"})


class OnnxAdapter(BaseAdapter):
    """Inputs are taken by name from input_ids, attention_mask, token_type_ids: int64, (batch, sequence)."""

    def load(self, report: Report) -> None:
        graph = graph_of(self._spec)
        self._heads = LoadedHeads(self._spec)
        self._tokenizer = Tokenizer.from_file(str(self._spec.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_longest(self._spec))
        _enable_padding(self._tokenizer)
        self._session, self.device, self.device_reason = open_session(graph, self._threads, self._wanted)
        self._inputs = [node.name for node in self._session.get_inputs() if node.name in _TOKENS]
        self._check_heads()
        # ONNX Runtime computes every branch of a graph, whichever output is asked for; the switches leave some out.
        self._switches = {
            name: {key: np.array(value) for key, value in head.inputs.items()}
            for name, head in self._spec.heads.items()
        }
        for name in self._spec.heads:
            if np.isnan(self._run(["warm up"], name)[0]).any():
                raise ModelLoadError(f"head {name!r} of {graph} gives no numbers (NaN): its weights are damaged")

    def _check_heads(self) -> None:
        if headless := set(self._spec.capabilities) - self._spec.heads.keys():
            raise ModelLoadError(f"model {self._spec.id!r} lacks a head for {', '.join(sorted(headless))} in its TOML")
        shapes = {node.name: node.shape for node in self._session.get_outputs()}
        for name, head in self._spec.heads.items():
            shape = shapes.get(head.output)
            if shape is None:
                raise ModelLoadError(f"head {name!r} wants {head.output!r}; the graph has {shapes}")
            if head.pooling is not None:
                rank = 2 if head.pooling == "none" else 3
                if len(shape) != rank:
                    raise ModelLoadError(f"head {name!r}: pooling {head.pooling!r} needs {rank} axes; it has {shape}")
                continue
            labels = self._heads.labels(name)
            if isinstance(shape[-1], int) and shape[-1] != len(labels):
                raise ModelLoadError(
                    f"head {name!r} wants {head.output!r} with {len(labels)} labels; the graph has {shapes}"
                )

    def labels(self, head: str) -> Sequence[str]:
        return self._heads.labels(head)

    def decision(self, head: str) -> Decision:
        return self._heads.decision(head)

    def classify(self, texts: Sequence[str | tuple[str, str]], head: str) -> Any:
        return self._run(texts, head)[0]

    def embed(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Unit vectors, float32 (texts, dimensions), and the tokens read of each text, int64 (texts,)."""
        values, mask = self._run(texts, EMBEDDINGS)
        pooled = _pooled(values, mask, self._spec.heads[EMBEDDINGS].pooling)
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled / np.maximum(lengths, 1e-12), mask.sum(axis=1)

    def _run(self, texts: Sequence[Any], name: str) -> tuple[Any, Any]:
        """The head's output as float32, and the attention mask."""
        head = self._spec.heads[name]
        encodings = self._tokenizer.encode_batch_fast(head.compose(texts))
        feeds = self._feeds(encodings)
        output = self._session.run([head.output], feeds | self._switches[name])[0]
        mask = feeds.get("attention_mask")
        if mask is None:
            mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return output.astype(np.float32, copy=False), mask

    def feeds(self, texts: Sequence[str | tuple[str, str]], head: str) -> dict[str, Any]:
        """What the graph gets for these texts: int64 arrays (texts, longest), by input."""
        return self._feeds(self._tokenizer.encode_batch_fast(self._spec.heads[head].compose(texts)))

    def _feeds(self, encodings: Sequence[Any]) -> dict[str, Any]:
        return {
            key: np.array([getattr(encoding, _TOKENS[key]) for encoding in encodings], dtype=np.int64)
            for key in self._inputs
        }


def _longest(spec: ModelSpec) -> int:
    """Tokens that entry and position table both allow: past its end the graph fails."""
    config = read_config(spec)
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return spec.window
    kind, padding = str(config.get("model_type")), config.get("pad_token_id")
    # Theirs begin after that of the padding.
    if isinstance(padding, int) and ("roberta" in kind or kind in _AFTER_PADDING):
        positions -= padding + 1
    return min(spec.window, positions)


def _enable_padding(tokenizer: Tokenizer) -> None:
    """To the longest of a batch, with the model's own padding token."""
    own = tokenizer.padding or {}
    known = next((token for token in _PADS if tokenizer.token_to_id(token) is not None), None)
    token = own.get("pad_token") or known or _PADS[0]
    number = own.get("pad_id", tokenizer.token_to_id(token) or 0)
    tokenizer.enable_padding(pad_id=number, pad_token=token, pad_type_id=own.get("pad_type_id", 0))


def _pooled(values: Any, mask: Any, pooling: str | None) -> Any:
    """Token vectors (texts, tokens, dimensions) to one a text; mean over what the mask keeps, or the first token."""
    if pooling == "mean":
        kept = mask[..., None].astype(values.dtype)
        return (values * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return values[:, 0] if pooling == "cls" else values
