"""int8 weights for the graph: smoothed inputs, one scale per output channel, rounding that corrects its own error."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import backbone
import numpy as np
import onnx
import onnxruntime as ort
from graph import GELU_SHIFT, LAYERS, PRODUCTS, WEIGHT_LIMIT, Array, Int8Product
from onnx import numpy_helper

BALANCE = 0.5  # 0 leaves the loudness in the activations, 1 moves all of it into the weights
DAMPING = 0.01
BLOCK = 96  # rows rounded before the rest is corrected, for speed alone
TOKENS = 2048  # gathered before they are summed, likewise


@dataclass
class Activity:
    """What one tensor carried: the loudest value per channel, and the sum of x xᵀ over all tokens."""

    loudest: Array = field(default_factory=lambda: np.zeros(1, np.float32))
    gram: Array = field(default_factory=lambda: np.zeros((1, 1)))
    waiting: list[Array] = field(default_factory=list)

    def add(self, rows: Array) -> None:
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= TOKENS:
            self.settle()

    def settle(self) -> None:
        if self.waiting:
            rows = np.concatenate(self.waiting)
            self.loudest = np.maximum(self.loudest, np.abs(rows).max(axis=0))
            self.gram = self.gram + rows.T @ rows
            self.waiting.clear()


def session(model: onnx.ModelProto | str, threads: int = 2) -> ort.InferenceSession:
    """As the runtime makes it: CPU, spinning off."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # it warns that the switches are no constants, which is what they are for
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def int8_products(exact: onnx.ModelProto, texts: Sequence[backbone.Text]) -> dict[str, Int8Product]:
    """Every product of the fp32 graph (written without switches) in int8, calibrated on what `texts` cause in it."""
    names = {f"{part}.{number}.{kind}" for part in ("trunk", "tuned") for number in range(LAYERS) for kind in PRODUCTS}
    inputs = {node.name: node.input[0] for node in exact.graph.node if node.name in names}
    activity = _watch(exact, set(inputs.values()), texts)
    constants = {item.name: item for item in exact.graph.initializer}
    made = {}
    for name, tensor in inputs.items():
        weight = numpy_helper.to_array(constants[f"{name}.weight"]).astype(np.float64)
        made[name] = _quantise(weight, activity[tensor])
    return made


def _watch(exact: onnx.ModelProto, tensors: Iterable[str], texts: Sequence[backbone.Text]) -> dict[str, Activity]:
    """Texts run one by one, so no padding is counted."""
    names = sorted(tensors)
    watched = onnx.ModelProto()
    watched.CopyFrom(exact)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    runner, tokenizer = session(watched), backbone.tokenizer()
    found = {name: Activity() for name in names}
    for text in texts:
        for name, values in zip(names, runner.run(names, backbone.encode(tokenizer, [text])), strict=True):
            rows = values[0] + (GELU_SHIFT if name.endswith(".down.in") else 0)
            found[name].add(rows)
    for activity in found.values():
        activity.settle()
    return found


def _quantise(weight: Array, activity: Activity) -> Int8Product:
    loud = np.maximum(np.abs(weight).max(axis=1), 1e-5)
    smooth = np.maximum(activity.loudest**BALANCE / loud ** (1 - BALANCE), 1e-4).astype(np.float32)
    weight = weight * smooth[:, None]
    gram = activity.gram.astype(np.float64) / np.outer(smooth, smooth)
    scale = (np.abs(weight).max(axis=0) / WEIGHT_LIMIT).astype(np.float32)
    return Int8Product(_round(weight, scale, gram), scale, smooth)


def _round(weight: Array, scale: Array, gram: Array) -> Array:
    """Rounds input by input, loudest first, and lets the inputs still to come make up for each error.

    GPTQ (Frantar et al., 2022): with H = Σ x xᵀ, the error of row i is spread by the Cholesky factor of H⁻¹.
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    rest = weight[order].copy()
    h = gram[np.ix_(order, order)]
    h[np.diag_indices_from(h)] += DAMPING * np.mean(np.diag(gram))
    spread = np.linalg.cholesky(np.linalg.inv(h)).T
    steps = np.zeros(weight.shape, np.int8)
    for start in range(0, len(rest), BLOCK):
        end = min(start + BLOCK, len(rest))
        errors = np.zeros((end - start, weight.shape[1]))
        for i in range(start, end):
            rounded = np.round(rest[i] / scale).clip(-WEIGHT_LIMIT, WEIGHT_LIMIT)
            steps[order[i]] = rounded
            errors[i - start] = (rest[i] - rounded * scale) / spread[i, i]
            rest[i + 1 : end] -= np.outer(spread[i, i + 1 : end], errors[i - start])
        rest[end:] -= spread[start:end, end:].T @ errors
    return steps
