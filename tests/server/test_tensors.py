"""Tensors of the Open Inference Protocol, without a server."""

import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from sidecar.capabilities.base import Tensor
from sidecar.errors import BadRequestError, InputError
from sidecar.server.tensors import MAX_ROWS, InputTensor, flat, read_body, rows, to_binary

TEXT = Tensor("text", "BYTES")
DEEP = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ' + b"[" * 100_000


def body(**tensor: Any) -> bytes:
    return msgspec.json.encode({"inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", **tensor}]})


def binary(datatype: str, shape: list[int], data: bytes, size: int | None = None) -> tuple[bytes, int]:
    parameters = {"binary_data_size": len(data) if size is None else size}
    head = body(datatype=datatype, shape=shape, parameters=parameters)
    return head + data, len(head)


@pytest.mark.parametrize("data", [["a", "ü"], [["a"], ["ü"]]])
def test_json_is_read_nested_or_flat(data: list[Any]) -> None:
    assert read_body(body(data=data), None)[1] == [["a", "ü"]]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_in_both_forms(kind: str) -> None:
    limits = np.iinfo(kind)
    values = np.array([limits.min, 7, limits.max], dtype=kind)
    datatype = np_to_triton_dtype(values.dtype)
    assert read_body(*binary(datatype, [3], values.tobytes()))[1] == [values.tolist()]
    assert read_body(body(datatype=datatype, shape=[3], data=values.tolist()), None)[1] == [values.tolist()]
    assert to_binary(datatype, values.tolist()) == values.tobytes()
    with pytest.raises(InputError, match=datatype):
        read_body(body(datatype=datatype, shape=[1], data=[int(limits.max) + 1]), None)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bool"])
def test_floats_and_bools_in_both_forms(kind: str) -> None:
    values = np.array([0, 1, 0.1], dtype=kind)
    datatype = np_to_triton_dtype(values.dtype)
    assert read_body(*binary(datatype, [3], values.tobytes()))[1] == [values.tolist()]
    assert read_body(body(datatype=datatype, shape=[3], data=values.tolist()), None)[1] == [values.tolist()]
    assert to_binary(datatype, values.tolist()) == values.tobytes()


def test_bytes_are_those_of_the_reference_client() -> None:
    texts = np.array(["", "a\0b", "naïve 漢字 🎉", "x" * 70_000], dtype=np.object_)
    data = serialize_byte_tensor(texts).item()
    assert read_body(*binary("BYTES", [4], data))[1] == [texts.tolist()]
    assert [each.decode() for each in deserialize_bytes_tensor(to_binary("BYTES", texts.tolist()))] == texts.tolist()


@pytest.mark.parametrize(
    ("raw", "length", "named"),
    [
        (binary("BYTES", [1], b"\x05\0\0\0ab"), None, "beyond"),
        (binary("BYTES", [1], b"\x05\0"), None, "beyond"),
        (binary("BYTES", [1], b"\x01\0\0\0\xff"), None, "UTF-8"),
        (binary("FP32", [1], b"\0\0\0"), None, "whole number"),
        (binary("FP32", [1], b"\0\0\0\0", size=8), None, "binary_data_size"),
        (binary("FP32", [1], b"\0\0\0\0", size=-4), None, "binary_data_size"),
        (binary("FP32", [1], b"\0\0\0\0\0", size=4), None, "belong to no input"),
        (binary("COMPLEX", [1], b"\0\0\0\0"), None, "COMPLEX"),
        ((body(data=[1, 2]), None), None, "strings"),
        ((body(datatype="FP32", data=["a", "b"]), None), None, "FP32"),
        ((body(), None), None, "no data"),
        ((body(parameters={"shared_memory_region": "r"}), None), None, "shared memory"),
        ((body(shape="2"), None), None, r"inputs\[0\].shape"),
        ((b'{"inputs": 5}', None), None, "inputs"),
        ((body(data=[[[[[[[[["deep"]]]]]]]]]), None), None, "dimensions"),
    ],
)
def test_what_does_not_fit_is_named(raw: tuple[bytes, int | None], length: None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_body(*raw)


@pytest.mark.parametrize("raw", [(b"", None), (b"{", None), (b"\xff", None), (b"{}", 0), (b"{}", 3), (DEEP, None)])
def test_what_is_no_json_is_a_bad_request(raw: tuple[bytes, int | None]) -> None:
    with pytest.raises(BadRequestError):
        read_body(*raw)


def tensor(*shape: int, datatype: str = "BYTES") -> InputTensor:
    return InputTensor("text", list(shape), datatype)


def test_rows_are_scalars_or_arrays() -> None:
    assert rows(tensor(2), ["a", "b"], TEXT) == ["a", "b"]
    assert rows(tensor(2, 1), ["a", "b"], TEXT) == ["a", "b"]
    assert rows(tensor(0), [], TEXT) == []
    matrix = Tensor("m", "FP32", (-1, 2, -1))
    got = rows(InputTensor("m", [2, 2, 3], "FP32"), list(range(12)), matrix)
    assert got == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize(
    ("given", "elements", "named"),
    [
        (tensor(3), ["a"], "1 elements"),
        (tensor(2, 2), ["a"] * 4, "shape"),
        (tensor(), ["a"], "shape"),
        (tensor(-1), [], "shape"),
        (tensor(2, datatype="FP32"), [1.0, 2.0], "is BYTES"),
        (tensor(MAX_ROWS + 1), ["a"] * (MAX_ROWS + 1), str(MAX_ROWS)),
        (tensor(10**30), [], "rows"),
    ],
)
def test_rows_that_do_not_fit_are_named(given: InputTensor, elements: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        rows(given, elements, TEXT)


def test_outputs_are_flattened_with_their_shape() -> None:
    assert flat(Tensor("y", "FP32"), [0.5, 0.25]) == ([2], [0.5, 0.25])
    assert flat(Tensor("y", "FP32", (-1, 3)), [(1, 2, 3), (4, 5, 6)]) == ([2, 3], [1, 2, 3, 4, 5, 6])
    assert flat(Tensor("y", "FP32", (-1, 3)), []) == ([0, 3], [])
    assert flat(Tensor("y", "FP32", (-1, -1)), []) == ([0, 0], [])
    assert struct.unpack("<2f", to_binary("FP32", [0.5, 0.25])) == (0.5, 0.25)
