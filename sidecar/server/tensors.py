"""Tensors of the Open Inference Protocol: JSON and binary bodies ↔ rows of Python values.

Protocol: KServe's open-inference-protocol, `inference_rest.md`, and its binary tensor data extension: little-endian,
row-major, without padding; a BYTES element is a 4-byte length and that many bytes.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from sidecar.capabilities.base import Tensor
from sidecar.errors import BadRequestError, InputError

MAX_ROWS = 4096
_MAX_RANK = 8

# Codes of the struct module.
_CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH = struct.Struct("<I")


class InputTensor(msgspec.Struct):
    """`$request_input`: a tensor whose elements are in `data`, or in the binary part of the body."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class WantedOutput(msgspec.Struct):
    """`$request_output`."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """`$inference_request`."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[WantedOutput] = []


_decoder = msgspec.json.Decoder(InferBody)


def read_body(body: bytes, json_bytes: int | None) -> tuple[InferBody, list[list[Any]]]:
    """The request, and the elements of each input in row-major order. The JSON part is `json_bytes` long, None is all.

    Raises BadRequestError, InputError naming the input.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {json_bytes}; the body has {len(body)} bytes")
    try:
        request = _decoder.decode(memoryview(body)[:json_bytes])
    except msgspec.ValidationError as error:
        raise InputError(f"the request does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is no valid JSON: {error}") from None
    rest = memoryview(body)[json_bytes:] if json_bytes is not None else memoryview(b"")
    elements = []
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            elements.append(_from_json(tensor))
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"input {tensor.name!r}: binary_data_size is {size!r}, {len(rest)} bytes are left")
        elements.append(_from_binary(tensor, rest[:size]))
        rest = rest[size:]
    if len(rest):
        raise InputError(f"{len(rest)} bytes of the body belong to no input")
    return request, elements


def rows(tensor: InputTensor, elements: list[Any], form: Tensor) -> list[Any]:
    """The elements as one value per row: a scalar, or nested lists. Raises InputError naming what does not fit."""
    if tensor.datatype != form.datatype:
        raise InputError(f"input {form.name!r} is {form.datatype}, got {tensor.datatype}")
    shape = list(tensor.shape)
    # [n, 1] where [n] is wanted: what models with a batch dimension of their own are sent.
    while len(shape) > len(form.shape) and shape[-1] == 1:
        shape.pop()
    fits = len(shape) == len(form.shape) and all(
        want in (-1, got) and got >= 0 for want, got in zip(form.shape, shape, strict=False)
    )
    if not fits:
        raise InputError(f"input {form.name!r} has shape {list(form.shape)}, got {tensor.shape}")
    if shape[0] > MAX_ROWS:
        raise InputError(f"input {form.name!r} has {shape[0]} rows; one request may have {MAX_ROWS}")
    if len(elements) != math.prod(shape):
        raise InputError(f"input {form.name!r}: shape {tensor.shape} does not fit its {len(elements)} elements")
    return _nested(elements, shape)


def flat(form: Tensor, values: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """Shape and elements of an output with one value per row."""
    shape = [len(values)]
    level: Sequence[Any] = values
    for declared in form.shape[1:]:
        width = len(level[0]) if level else max(declared, 0)
        shape.append(width)
        level = [element for value in level for element in value]
    return shape, list(level)


def to_binary(datatype: str, elements: Sequence[Any]) -> bytes:
    """Elements in the extension's form."""
    if datatype == "BYTES":
        encoded = [str(element).encode() for element in elements]
        return b"".join(part for each in encoded for part in (_LENGTH.pack(len(each)), each))
    return struct.pack(f"<{len(elements)}{_CODES[datatype]}", *elements)


def _from_json(tensor: InputTensor) -> list[Any]:
    if tensor.data is None:
        where = "shared memory is not offered" if "shared_memory_region" in tensor.parameters else "it has no data"
        raise InputError(f"input {tensor.name!r}: {where}; send `data`, or binary data")
    elements = list(_leaves(tensor.name, tensor.data, _MAX_RANK))
    if tensor.datatype == "BYTES":
        wrong = next((element for element in elements if not isinstance(element, str)), None)
        if wrong is not None:
            raise InputError(f"input {tensor.name!r} is BYTES: its elements are strings, got {type(wrong).__name__}")
        return elements
    code = _code(tensor)
    try:  # there and back: range and type are then those of the datatype, as for binary data
        return list(struct.unpack(f"<{len(elements)}{code}", struct.pack(f"<{len(elements)}{code}", *elements)))
    except (struct.error, OverflowError) as error:
        raise InputError(f"input {tensor.name!r} is {tensor.datatype}: {error}") from None


def _from_binary(tensor: InputTensor, data: memoryview) -> list[Any]:
    if tensor.datatype == "BYTES":
        return list(_texts(tensor.name, data))
    code = _code(tensor)
    count, odd = divmod(len(data), struct.calcsize(f"<{code}"))
    if odd:
        raise InputError(f"input {tensor.name!r}: {len(data)} bytes are no whole number of {tensor.datatype}")
    return list(struct.unpack(f"<{count}{code}", data))


def _texts(name: str, data: memoryview) -> Iterator[str]:
    position = 0
    while position < len(data):
        start = position + _LENGTH.size
        end = start + _LENGTH.unpack_from(data, position)[0] if start <= len(data) else start
        if end > len(data):
            raise InputError(f"input {name!r}: a BYTES element reaches beyond its binary data")
        try:
            yield str(data[start:end], "utf-8")
        except UnicodeDecodeError:
            raise InputError(f"input {name!r}: an element is not UTF-8") from None
        position = end


def _code(tensor: InputTensor) -> str:
    try:
        return _CODES[tensor.datatype]
    except KeyError:
        known = ", ".join((*_CODES, "BYTES"))
        raise InputError(f"input {tensor.name!r}: datatype {tensor.datatype!r} is none of {known}") from None


def _leaves(name: str, data: list[Any], rank: int) -> Iterator[Any]:
    if rank == 0:
        raise InputError(f"input {name!r} has more than {_MAX_RANK} dimensions")
    for element in data:
        if isinstance(element, list):
            yield from _leaves(name, element, rank - 1)
        else:
            yield element


def _nested(elements: list[Any], shape: list[int]) -> list[Any]:
    if len(shape) == 1:
        return elements
    width = math.prod(shape[1:])
    return [_nested(elements[row * width : (row + 1) * width], shape[1:]) for row in range(shape[0])]
