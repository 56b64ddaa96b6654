"""Tiny text models in the real formats (ONNX, tokenizer.json, config.json), whose answers can be worked out by hand.

A token's row in a table is its vector; the encoder gives the rows, the classifier their sum. The bytes of an ONNX file
are written here (protocol buffers: onnx/onnx.proto), so that the tests need no further package.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_FLOAT, _INT64 = 1, 7
_IR_VERSION, _OPSET = 8, 13

Rows = Mapping[str, Sequence[float]]


def write_classifier(folder: Path, rows: Rows, labels: Sequence[str] | None = None, **config: object) -> Path:
    """`model.onnx` with output `logits`: the sum of the tokens' rows. Words without a row, and specials, count 0."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "model.onnx", rows, classify=True)
    write_tokenizer(folder, rows)
    if labels is not None:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}), encoding="utf-8")
    return folder


def write_encoder(folder: Path, rows: Rows) -> Path:
    """`onnx/model.onnx` with output `last_hidden_state`: the tokens' rows."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    _write(folder / "onnx" / "model.onnx", rows, classify=False)
    write_tokenizer(folder, rows)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, rows: Rows) -> None:
    """Words between spaces; [CLS] text [SEP], [CLS] text [SEP] pair [SEP]."""
    vocabulary = {token: number for number, token in enumerate(_tokens(rows))}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    made.save(str(folder / "tokenizer.json"))


def _tokens(rows: Rows) -> list[str]:
    return [*SPECIAL, *(token for token in rows if token not in SPECIAL)]


def _write(path: Path, rows: Rows, classify: bool) -> None:
    width = len(next(iter(rows.values())))
    table = np.array([rows.get(token, [0.0] * width) for token in _tokens(rows)], np.float32)
    nodes = [_node("Gather", ["table", "input_ids"], "last_hidden_state")]
    weights = [_tensor("table", table, _FLOAT)]
    output = _value("last_hidden_state", _FLOAT, ["batch", "sequence", width])
    if classify:
        nodes.append(_node("ReduceSum", ["last_hidden_state", "axes"], "logits", keepdims=0))
        weights.append(_tensor("axes", np.array([1], np.int64), _INT64))
        output = _value("logits", _FLOAT, ["batch", width])
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"tiny"),
            *(_bytes(5, weight) for weight in weights),
            *(_bytes(11, _value(name, _INT64, ["batch", "sequence"])) for name in ("input_ids", "attention_mask")),
            _bytes(12, output),
        ]
    )
    path.write_bytes(_number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET)))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(operation: str, inputs: Sequence[str], output: str, **integers: int) -> bytes:
    attributes = [
        _bytes(5, _bytes(1, name.encode()) + _number(3, value) + _number(20, 2)) for name, value in integers.items()
    ]
    named = [_bytes(1, name.encode()) for name in inputs]
    return b"".join([*named, _bytes(2, output.encode()), _bytes(4, operation.encode()), *attributes])


def _tensor(name: str, values: npt.NDArray[np.generic], kind: int) -> bytes:
    sizes = b"".join(_number(1, size) for size in values.shape)
    return sizes + _number(2, kind) + _bytes(8, name.encode()) + _bytes(9, values.tobytes())


def _value(name: str, kind: int, shape: Sequence[str | int]) -> bytes:
    sizes = [_bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape]
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, b"".join(sizes))))


def unpack(base64_bytes: bytes) -> list[float]:
    """Little-endian float32."""
    return list(struct.unpack(f"<{len(base64_bytes) // 4}f", base64_bytes))
