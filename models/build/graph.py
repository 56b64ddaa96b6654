"""The ONNX graph, written node by node: a trunk, branches on it, and exact (fp32) or row-wise int8 matrix products.

Names: layer `trunk.0` to `trunk.5` (original weights), `tuned.1` … (fine-tuned copies); in each layer the products
`qkv`, `out`, `up`, `down`. The input of a product is the tensor `<layer>.<product>.in` (used for calibration).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
Output = tuple[str, int]  # name, width

HIDDEN = 384
ATTENTION_HEADS = 12
LAYERS = 6
OPSET = 18
IR_VERSION = 9
WINDOW = 256  # the sentence model was trained with at most as many tokens
EPSILON = 1e-12
SWITCHES = ("with_embedding", "with_labels")
PRODUCTS = ("qkv", "out", "up", "down")
CONTRIB = "com.microsoft"

# u8 × s8 products are summed in pairs into 16 bits on CPUs without VNNI: 2 × 255 × 64 = 32,640 still fits.
WEIGHT_LIMIT = 64
# GELU is never below -0.17, so shifted by this its output is positive and can use all 256 steps.
GELU_SHIFT = np.float32(0.18)


@dataclass(frozen=True)
class Head:
    """A linear classifier on the mean of the branch's last layer: weight (labels, hidden), bias (labels)."""

    output: str
    weight: Array
    bias: Array


@dataclass(frozen=True)
class Int8Product:
    """weight ≈ steps × scale, after input channel i was divided by smooth[i].

    steps (inputs, outputs) int8 within ±WEIGHT_LIMIT, scale (outputs) fp32, smooth (inputs) fp32.
    """

    steps: Array
    scale: Array
    smooth: Array


@dataclass
class GraphWriter:
    """Collects nodes and constants. `products` holds the int8 weights by product; None writes everything in fp32.

    `outer` is the graph round a branch; its tensors and constants can be named in the branch.
    """

    products: Mapping[str, Int8Product] | None = None
    outer: "GraphWriter | None" = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: Any) -> str:
        if name not in self.constants and (self.outer is None or name not in self.outer.constants):
            self.constants[name] = numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def product(self, x: str, name: str, weight: Array, bias: Array) -> tuple[str, str]:
        """x (…, inputs) times weight (inputs, outputs); returns the tensor and the bias that the next node must add."""
        if self.products is None:
            summed = self.add("MatMul", [x, self.constant(f"{name}.weight", weight)], name)
            return summed, self.constant(f"{name}.bias", bias)
        int8 = self.products[name]
        shifted = name.endswith(".down")
        if shifted:
            x = self.add("Add", [x, self.constant("gelu_shift", GELU_SHIFT)], f"{name}.shifted")
            bias = bias - GELU_SHIFT * (int8.steps / int8.smooth[:, None]).sum(axis=0) * int8.scale
        x = self.add("Mul", [x, self.constant(f"{name}.smooth", 1 / int8.smooth)], f"{name}.smoothed")
        summed = self._integer_product(x, name, int8, shifted)
        return summed, self.constant(f"{name}.bias", bias.astype(np.float32))

    def _integer_product(self, x: str, name: str, int8: Int8Product, positive: bool) -> str:
        """Each token (row) has a scale of its own, so a text's result does not depend on what shares its batch."""
        size = x if positive else self.add("Abs", [x], f"{name}.size")
        row_scale = self.add("ReduceMax", [size, self.constant("last_axis", np.array([-1]))], f"{name}.row_scale")
        unit = self.add("Div", [x, row_scale], f"{name}.unit")
        step = self.constant("step_255" if positive else "step_127", np.float32(1 / 255 if positive else 1 / 127))
        zero = self.constant("zero_u8" if positive else "middle_u8", np.uint8(0 if positive else 128))
        quantised = self.add("QuantizeLinear", [unit, step, zero], f"{name}.steps")
        weight, scale = self.constant(f"{name}.weight", int8.steps), self.constant(f"{name}.scale", int8.scale)
        inputs = [quantised, weight, step, scale, zero]
        summed = self.add("MatMulIntegerToFloat", inputs, f"{name}.sum", CONTRIB)
        return self.add("Mul", [summed, row_scale], name)

    def embeddings(self, weights: Weights) -> str:
        """Word (int8 with a scale per row, unless fp32), position and type embeddings, then LayerNorm."""
        word = weights["embeddings.word_embeddings.weight"]
        if self.products is None:
            x = self.add("Gather", [self.constant("words", word), "input_ids"], "word")
        else:
            scale = (np.abs(word).max(axis=1, keepdims=True) / 127).astype(np.float32)
            steps = np.round(word / scale).astype(np.int8)
            row = self.add("Gather", [self.constant("words", steps), "input_ids"], "word_steps")
            row = self.add("Cast", [row], "word_float", to=TensorProto.FLOAT)
            row_scale = self.add("Gather", [self.constant("words.scale", scale), "input_ids"], "word_scale")
            x = self.add("Mul", [row, row_scale], "word")
        length = self.add("Shape", ["input_ids"], "length", start=1, end=2)
        table = self.constant("positions", weights["embeddings.position_embeddings.weight"][:WINDOW])
        zero = self.constant("first", np.array([0]))
        position = self.add("Slice", [table, zero, length, zero], "position")
        types = self.constant("types", weights["embeddings.token_type_embeddings.weight"])
        kind = self.add("Gather", [types, "token_type_ids"], "type")
        x = self.add("Add", [self.add("Add", [x, kind], "word_type"), position], "embedded")
        norm = [self.constant(f"norm.{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
        return self.add("LayerNormalization", [x, *norm], "trunk.0.in", axis=-1, epsilon=EPSILON)

    def layer(self, x: str, name: str, weights: Weights, number: int, output: str) -> str:
        """One BERT layer (attention, add and norm, feed-forward, add and norm)."""

        def of(part: str, kind: str = "weight") -> Array:
            return np.asarray(weights[f"encoder.layer.{number}.{part}.{kind}"])

        parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
        merged = np.concatenate([of(part).T for part in parts], axis=1)
        y, bias = self.product(x, f"{name}.qkv", merged, np.concatenate([of(part, "bias") for part in parts]))
        heads = [f"{name}.{part}" for part in ("query", "key", "value")]
        self.nodes.append(helper.make_node("Split", [y], heads, name=f"{name}.split", axis=-1, num_outputs=3))
        y = self.add("MultiHeadAttention", [*heads, bias, "mask"], f"{name}.out.in", CONTRIB, num_heads=ATTENTION_HEADS)
        y, bias = self.product(y, f"{name}.out", of("attention.output.dense").T, of("attention.output.dense", "bias"))
        x = self._add_and_norm(y, x, bias, "attention.output.LayerNorm", of, f"{name}.up.in")
        y, bias = self.product(x, f"{name}.up", of("intermediate.dense").T, of("intermediate.dense", "bias"))
        y = self.add("BiasGelu", [y, bias], f"{name}.down.in", CONTRIB)
        y, bias = self.product(y, f"{name}.down", of("output.dense").T, of("output.dense", "bias"))
        return self._add_and_norm(y, x, bias, "output.LayerNorm", of, output)

    def _add_and_norm(self, y: str, x: str, bias: str, part: str, of: Callable[..., Array], output: str) -> str:
        norm = [self.constant(f"{output}.{kind}", of(part, kind)) for kind in ("weight", "bias")]
        return self.add("SkipLayerNormalization", [y, x, *norm, bias], output, CONTRIB, epsilon=EPSILON)

    def mean(self, x: str, output: str) -> str:
        """Mean over the tokens that the mask names."""
        total = self.add("MatMul", ["mask_row", x], f"{output}.total")
        flat = self.add("Squeeze", [total, self.constant("second_axis", np.array([1]))], f"{output}.flat")
        return self.add("Div", [flat, "tokens"], output)


def _masks(writer: GraphWriter) -> None:
    writer.add("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    writer.add("Cast", ["attention_mask"], "mask_float", to=TensorProto.FLOAT)
    axis = writer.constant("second_axis", np.array([1]))
    writer.add("Unsqueeze", ["mask_float", axis], "mask_row")
    writer.add("ReduceSum", ["mask_float", axis], "tokens", keepdims=1)


def _embedding_branch(writer: GraphWriter, x: str, original: Weights, shared: int) -> list[Output]:
    for number in range(shared, LAYERS):
        x = writer.layer(x, f"trunk.{number}", original, number, f"trunk.{number + 1}.in")
    mean = writer.mean(x, "sentence")
    length = writer.add("ReduceL2", [mean, writer.constant("last_axis", np.array([-1]))], "norm", keepdims=1)
    writer.add("Div", [mean, length], "embedding")
    return [("embedding", HIDDEN)]


def _label_branch(writer: GraphWriter, x: str, tuned: Weights, shared: int, heads: Sequence[Head]) -> list[Output]:
    for number in range(shared, LAYERS):
        x = writer.layer(x, f"tuned.{number}", tuned, number, f"tuned.{number + 1}.in")
    mean = writer.mean(x, "features")
    for head in heads:
        weight = writer.constant(f"{head.output}.weight", head.weight)
        bias = writer.constant(f"{head.output}.bias", head.bias)
        writer.add("Gemm", [mean, weight, bias], head.output, transB=1)
    return [(head.output, len(head.bias)) for head in heads]


def write_graph(
    original: Weights,
    tuned: Weights,
    shared: int,
    heads: Sequence[Head],
    products: Mapping[str, Int8Product] | None,
    optional: bool = True,
) -> onnx.ModelProto:
    """Outputs: `embedding` from the original layers; every head from the tuned layers, which begin above `shared`.

    `optional` puts both branches behind the switches SWITCHES: ONNX Runtime computes the whole graph whichever output
    is asked for, so a caller needs a way to leave a branch out.
    """
    writer = GraphWriter(products)
    _masks(writer)
    writer.constant("last_axis", np.array([-1]))
    x = writer.embeddings(original)
    for number in range(shared):
        x = writer.layer(x, f"trunk.{number}", original, number, f"trunk.{number + 1}.in")
    results: list[Output] = []
    for switch in SWITCHES:
        branch = GraphWriter(products, writer) if optional else writer
        if switch == "with_embedding":
            outputs = _embedding_branch(branch, x, original, shared)
        else:
            outputs = _label_branch(branch, x, tuned, shared, heads)
        if optional:
            _add_switch(writer, switch, branch, outputs)
        results += outputs
    return _model(writer, results, SWITCHES if optional else ())


def _infos(outputs: Sequence[Output]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs]


def _rename(branch: GraphWriter, old: str, new: str) -> None:
    """An inner tensor may not have the name of an outer one."""
    node = next(node for node in branch.nodes if old in node.output)
    node.output[list(node.output).index(old)] = new


def _add_switch(writer: GraphWriter, switch: str, branch: GraphWriter, outputs: Sequence[Output]) -> None:
    """The branch, or NaN in its outputs' place: nobody can take what was left out for an answer."""
    inner = [(f"{name}.taken", size) for name, size in outputs]
    for name, _ in outputs:
        _rename(branch, name, f"{name}.taken")
    taken = helper.make_graph(branch.nodes, f"{switch}_true", [], _infos(inner), list(branch.constants.values()))
    left = GraphWriter(outer=writer)
    count = left.add("Shape", ["input_ids"], f"{switch}.count", start=0, end=1)
    nothing = helper.make_tensor("nothing", TensorProto.FLOAT, [1], [float("nan")])
    for name, size in outputs:
        width = left.constant(f"{name}.width", np.array([size]))
        shape = left.add("Concat", [count, width], f"{name}.shape", axis=0)
        left.add("ConstantOfShape", [shape], f"{name}.left", value=nothing)
    absent = [(f"{name}.left", size) for name, size in outputs]
    other = helper.make_graph(left.nodes, f"{switch}_false", [], _infos(absent), list(left.constants.values()))
    writer.constant(switch, np.array(True))
    names = [name for name, _ in outputs]
    writer.nodes.append(helper.make_node("If", [switch], names, name=switch, then_branch=taken, else_branch=other))


def _model(writer: GraphWriter, outputs: Sequence[Output], switches: Sequence[str]) -> onnx.ModelProto:
    shape = ["batch", "sequence"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    # An input with a constant of its name has that as its default: callers may leave it out.
    inputs += [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in switches]
    graph = helper.make_graph(writer.nodes, "minilm", inputs, _infos(outputs), list(writer.constants.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ml-sidecar")
    onnx.checker.check_model(model)
    return model
