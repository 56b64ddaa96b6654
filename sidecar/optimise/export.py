"""From a loaded torch classifier to a folder that the ONNX runtime serves: graph, tokenizer and config."""

import shutil
import warnings
from pathlib import Path
from typing import Any

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import OptimiseError
from sidecar.runner.adapters.torch import TorchAdapter

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 18
# A protocol buffer holds 2 GiB; past this the weights lie in a file beside it.
INLINE_BYTES = 1_800_000_000
# Two lengths, so that padding is in the example.
_EXAMPLE = ("An example text.", "Another one, which is a little longer than the first.")


def export(adapter: TorchAdapter, spec: ModelSpec, folder: Path) -> None:
    """Write model.onnx, tokenizer.json and config.json. Raises OptimiseError where it cannot be exported.

    The graph is fp32, its inputs int64 (batch, sequence), both of any size, its output logits (batch, labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(adapter, folder / "tokenizer.json")
    shutil.copyfile(spec.folder / "config.json", folder / "config.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names of axes that turn out to be the same
            _write_graph(adapter, folder / GRAPH)
    except Exception as error:  # of torch's exporter: anything
        raise OptimiseError(
            f"model {spec.id!r} cannot be exported to ONNX: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _write_tokenizer(adapter: TorchAdapter, path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = adapter.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise OptimiseError(f"its tokenizer ({type(tokenizer).__name__}) has no form that ONNX models can use")
    made = Tokenizer.from_str(backend.to_str())
    made.no_truncation()
    made.enable_padding(
        pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token, pad_type_id=tokenizer.pad_token_type_id
    )
    made.save(str(path))


def _write_graph(adapter: TorchAdapter, path: Path) -> None:
    import torch

    model = adapter.model
    encoded = adapter.encode(_EXAMPLE)
    names = [name for name in INPUTS if name in encoded]

    class Logits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True))).logits

    size_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=adapter.window)}
    before = model.config._attn_implementation
    model.to("cpu")
    # Written out, attention is plain products and a softmax; the fused kind exports with a detour round empty rows.
    model.set_attn_implementation("eager")
    try:
        program = torch.onnx.export(
            Logits().eval(),
            tuple(encoded[name] for name in names),
            dynamo=True,
            dynamic_shapes=(tuple(axes for _ in names),),
            input_names=names,
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    finally:
        model.set_attn_implementation(before)
        model.to(adapter.device)
    program.save(str(path), external_data=size_bytes > INLINE_BYTES)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""
