"""The outline of an ONNX graph, and the graph with an inner tensor made an output.

A voice knows how long each of its symbols lasts, but few exports give that out. An ONNX file is one protobuf message,
and protobuf messages that follow each other are merged: a few bytes at its end name one more output, and nothing else
has to be read or written (protobuf.dev/programming-guides/encoding, "Last One Wins"; field numbers from onnx.proto).
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.errors import ModelLoadError

_GRAPH, _NODE, _GRAPH_OUTPUT, _NODE_OUTPUT, _OP_TYPE, _VALUE_NAME = 7, 1, 12, 2, 4, 1
_BYTES = 2


class Node(NamedTuple):
    """An operator, and the tensors that it gives out."""

    op_type: str
    outputs: list[str]


def nodes(path: Path) -> Iterator[Node]:
    """The graph's operators in order. Weights are passed over, not read. Raises ModelLoadError."""
    for node in _fields(_graph(path), _NODE):
        yield Node("".join(_texts(node, _OP_TYPE)), _texts(node, _NODE_OUTPUT))


def outputs(path: Path) -> list[str]:
    """Names of what the graph gives out. Raises ModelLoadError."""
    return [name for value in _fields(_graph(path), _GRAPH_OUTPUT) for name in _texts(value, _VALUE_NAME)]


def _graph(path: Path) -> memoryview:
    try:
        (graph,) = _fields(_mapped(path), _GRAPH)
    except (ValueError, IndexError, KeyError):
        raise ModelLoadError(f"{path} is no ONNX graph, or not a whole one") from None
    return graph


def _mapped(path: Path) -> memoryview:
    # Unmapped when the last view of it is gone.
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [bytes(content).decode("utf-8", "replace") for content in _fields(message, wanted)]


def with_output(path: Path, tensor: str) -> bytes:
    """The file's content, in which `tensor`, given out by some node, is an output too."""
    value = _field(_VALUE_NAME, tensor.encode())
    return b"".join((_mapped(path), _field(_GRAPH, _field(_GRAPH_OUTPUT, value))))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of the length-delimited fields with this number."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        kind = key & 7
        if kind == _BYTES:
            length, position = _read_varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is longer than its message")
            if key >> 3 == wanted:
                yield message[position : position + length]
            position += length
        elif kind == 0:
            _, position = _read_varint(message, position)
        else:
            position += {1: 8, 5: 4}[kind]


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value, position
