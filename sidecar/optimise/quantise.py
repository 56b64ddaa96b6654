"""int8 weights for an exported encoder: one scale per output channel and, at run time, one per token.

A token's scale is its own, so a text's result does not depend on what shares its batch. Inputs are smoothed before
(loudness moved from activations into weights; SmoothQuant, Xiao et al., 2022), with what calibration texts caused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

# Smaller products cost little and are the ones that decide: poolers and classification heads.
LEAST_ELEMENTS = 1 << 14
LEAST_EMBEDDING = 1 << 20
BALANCE = 0.5  # 0 leaves the loudness in the activations, 1 moves all of it into the weights
# Steps of a weight. All of int8 is the finest; but CPUs without VNNI sum u8 × s8 products in pairs into 16 bits, and
# there only 2 × 255 × 64 = 32,640 still fits. Which one this computer wants, the check of the answers tells.
WEIGHT_LIMITS = (127, 64)
TOKENS = 2048  # gathered before they are looked at
CONTRIB = "com.microsoft"


@dataclass
class Activity:
    """What one tensor carried: the loudest value per channel."""

    loudest: Array = field(default_factory=lambda: np.zeros(1, np.float32))

    def add(self, rows: Array) -> None:
        self.loudest = np.maximum(self.loudest, np.abs(rows).max(axis=0))


@dataclass(frozen=True)
class Product:
    """A MatMul of tokens with a constant weight (inputs, outputs)."""

    name: str
    tensor: str
    weight: str


def products(model: onnx.ModelProto) -> list[Product]:
    """What can be computed in int8, in graph order."""
    constants = {item.name: item for item in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and len(weight.dims) == 2 and weight.dims[0] * weight.dims[1] >= LEAST_ELEMENTS:
            found.append(Product(node.output[0], node.input[0], weight.name))
    return found


def watch(model: onnx.ModelProto, tensors: Iterable[str], feeds: Iterable[Feeds], threads: int) -> dict[str, Activity]:
    """Runs the graph on single texts (so no padding is counted) and notes what the tensors carried."""
    names = sorted(set(tensors))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = {name: Activity() for name in names}
    for feed in feeds:
        for name, values in zip(names, session.run(names, feed), strict=True):
            found[name].add(values.reshape(-1, values.shape[-1]))
    return found


def quantise(
    model: onnx.ModelProto, activity: dict[str, Activity], limit: int, keep: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """A copy with int8 products, weights within ±limit, except those in `keep`; and int8 embedding tables."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    chosen = {product.name: product for product in products(model) if product.name not in keep}
    writer = _Writer(made.graph, limit)
    smooth = _smoothing(writer, chosen.values(), activity)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        product = chosen.get(node.output[0])
        if product is not None:
            writer.product(product, smooth[product.tensor])
        elif not (node.op_type == "Gather" and writer.embedding(node)):
            made.graph.node.append(node)
    writer.drop_unused()
    if not any(each.domain == CONTRIB for each in made.opset_import):
        made.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    del made.graph.value_info[:]
    return made


def _smoothing(writer: "_Writer", chosen: Iterable[Product], activity: dict[str, Activity]) -> dict[str, Array]:
    """Per input tensor one divisor per channel; products that share an input share it."""
    loudest: dict[str, Array] = {}
    for product in chosen:
        loud = np.abs(writer.value(product.weight)).max(axis=1)
        loudest[product.tensor] = np.maximum(loudest.get(product.tensor, 0), loud)
    return {
        tensor: np.maximum(activity[tensor].loudest ** BALANCE / np.maximum(loud, 1e-5) ** (1 - BALANCE), 1e-4).astype(
            np.float32
        )
        for tensor, loud in loudest.items()
    }


class _Writer:
    """Appends the nodes of int8 products to a graph."""

    def __init__(self, graph: onnx.GraphProto, limit: int) -> None:
        self._graph = graph
        self._limit = limit
        self._constants = {item.name: item for item in graph.initializer}
        self._rows: dict[str, tuple[str, str]] = {}
        self._tables: dict[str, tuple[str, str]] = {}

    def value(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def product(self, product: Product, smooth: Array) -> None:
        """x · w ≈ row_scale · (steps_of_x · steps_of_w) · column_scale."""
        steps, row_scale = self._quantised(product.tensor, smooth)
        weight = self.value(product.weight).astype(np.float32) * smooth[:, None]
        scale = np.maximum(np.abs(weight).max(axis=0) / self._limit, 1e-12).astype(np.float32)
        rounded = np.round(weight / scale).clip(-self._limit, self._limit).astype(np.int8)
        inputs = [
            steps,
            self._constant(f"{product.name}.int8", rounded),
            self._constant("int8.step", np.float32(1 / 127)),
            self._constant(f"{product.name}.scale", scale),
            self._constant("int8.middle", np.uint8(128)),
        ]
        summed = self._add("MatMulIntegerToFloat", inputs, f"{product.name}.sum", CONTRIB)
        self._add("Mul", [summed, row_scale], product.name)

    def embedding(self, node: onnx.NodeProto) -> bool:
        """A large table of fp32 rows in int8 with a scale per row. False: it is no such table."""
        table = self._constants.get(node.input[0])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if table is None or axis != 0 or len(table.dims) != 2 or table.dims[0] * table.dims[1] < LEAST_EMBEDDING:
            return False
        if table.data_type != onnx.TensorProto.FLOAT:
            return False
        if table.name not in self._tables:
            values = self.value(table.name)
            scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
            rounded = np.round(values / scale).astype(np.int8)
            self._tables[table.name] = (
                self._constant(f"{table.name}.int8", rounded),
                self._constant(f"{table.name}.scale", scale),
            )
        steps, scales = self._tables[table.name]
        name = node.output[0]
        rows = self._add("Gather", [steps, node.input[1]], f"{name}.steps")
        wide = self._add("Cast", [rows], f"{name}.wide", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [wide, self._add("Gather", [scales, node.input[1]], f"{name}.scale")], name)
        return True

    def drop_unused(self) -> None:
        used = {name for node in self._graph.node for name in node.input}
        kept = [item for item in self._graph.initializer if item.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _quantised(self, tensor: str, smooth: Array) -> tuple[str, str]:
        """u8 steps of a tensor and its scale per row; computed once for all products that read it."""
        if tensor in self._rows:
            return self._rows[tensor]
        inverse = self._constant(f"{tensor}.smooth", (1 / smooth).astype(np.float32))
        x = self._add("Mul", [tensor, inverse], f"{tensor}.smoothed")
        size = self._add("Abs", [x], f"{tensor}.size")
        last = self._constant("int8.last_axis", np.array([-1], np.int64))
        loudest = self._add("ReduceMax", [size, last], f"{tensor}.loudest")
        scale = self._add("Max", [loudest, self._constant("int8.tiny", np.float32(1e-12))], f"{tensor}.row_scale")
        unit = self._add("Div", [x, scale], f"{tensor}.unit")
        step, zero = self._constant("int8.step", np.float32(1 / 127)), self._constant("int8.middle", np.uint8(128))
        steps = self._add("QuantizeLinear", [unit, step, zero], f"{tensor}.steps")
        self._rows[tensor] = steps, scale
        return steps, scale

    def _constant(self, name: str, values: Any) -> str:
        if name not in self._constants:
            made = numpy_helper.from_array(np.array(values, order="C"), name)
            self._constants[name] = made
            self._graph.initializer.append(made)
        return name

    def _add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._graph.node.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output
