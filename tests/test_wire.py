import random
from typing import Any

import numpy as np
import pytest

from sidecar import wire
from sidecar.errors import WireError

MESSAGES: list[wire.Message] = [
    wire.Infer(1, "emotion", ["text", "", "ünï😀", "x" * 5000]),
    wire.Infer(2, "any", [{"a": 1, "b": [1.5, None, True]}, b"\x00\xff"]),
    wire.Cancel(7),
    wire.Ready("cpu", "because", 12.5),
    wire.Progress("weights", 3, 10, "files"),
    wire.Chunk(3, "part"),
    wire.Result(4, [[("joy", 0.9)], []]),
    wire.Error(5, "inference_failed", "no", True),
]


def test_every_message_survives_any_cut_of_the_stream() -> None:
    stream = b"".join(wire.encode(message) for message in MESSAGES)
    chance = random.Random(3)
    for _ in range(50):
        decoder, position, got = wire.Decoder(), 0, []
        while position < len(stream):
            size = chance.choice((1, 2, 3, 5, 100, 4096))
            got += decoder.feed(stream[position : position + size])
            position += size
        # Tuples arrive as lists: MessagePack has one kind of array.
        assert [wire.encode(message) for message in got] == [wire.encode(message) for message in MESSAGES]


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((0, 5), np.int64)])
def test_arrays_keep_dtype_shape_and_bytes(array: "np.ndarray[Any, Any]") -> None:
    sent = wire.Array(str(array.dtype), array.shape, array.tobytes())
    (got,) = wire.Decoder().feed(wire.encode(wire.Result(1, [{"pcm": sent}])))
    assert isinstance(got, wire.Result)
    back = got.outputs[0]["pcm"]
    assert np.array_equal(np.frombuffer(back.data, back.dtype).reshape(back.shape), array)


def test_large_arrays_travel_beside_the_message_and_are_not_copied() -> None:
    small, large, odd = np.arange(7.0), np.arange(300_000, dtype=np.float32), np.frombuffer(b"abc" * 50_001, np.uint8)
    message = wire.Infer(9, "asr", [{"a": large, "b": [small, odd], "c": "text"}, large[:0]])
    parts = wire.frame(message)
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), large) for part in parts if len(part) == large.nbytes)
    stream = b"".join(parts) + wire.encode(wire.Cancel(3)) + wire.encode(message)
    chance = random.Random(4)
    for _ in range(3):
        decoder, position, got = wire.Decoder(), 0, []
        while position < len(stream):
            size = chance.choice((1, 7, 4096, 65_536, 1 << 20))
            got += decoder.feed(stream[position : position + size])
            position += size
        first, middle, last = got
        assert middle == wire.Cancel(3)
        for each in (first, last):
            item, none = each.items
            assert item["c"] == "text" and none.numpy().shape == (0,)
            for back, sent in ((item["a"], large), (item["b"][0], small), (item["b"][1], odd)):
                assert np.array_equal(back.numpy(), sent) and back.numpy().dtype == sent.dtype
                assert not back.numpy().flags.writeable
            assert item["a"].numpy().flags.aligned


def test_an_array_outside_its_frame_is_a_wire_error() -> None:
    whole = bytearray(wire.encode(wire.Infer(9, "asr", [np.zeros(100_000, np.float32)])))
    cut = (len(whole) - 4 - 32).to_bytes(4, "little") + whole[4:-32]
    with pytest.raises(WireError, match="outside"):
        list(wire.Decoder().feed(cut))


@pytest.mark.parametrize(
    "garbage",
    [
        b"this is no frame",
        b"\xff\xff\xff\xff",
        b"\x03\x00\x00\x00abc",
        b"\x02\x00\x00\x00\x81\xa1",
        b"\x01\x00\x00\x00\xc0",
    ],
)
def test_garbage_is_a_wire_error(garbage: bytes) -> None:
    with pytest.raises(WireError):
        list(wire.Decoder().feed(garbage))


def test_what_cannot_cross_is_named() -> None:
    with pytest.raises(WireError, match="object"):
        wire.encode(wire.Result(1, [object()]))


def test_a_frame_over_the_limit_is_refused_by_its_length_alone() -> None:
    with pytest.raises(WireError, match="announces"):
        list(wire.Decoder().feed((wire.MAX_FRAME_BYTES + 1).to_bytes(4, "little")))
