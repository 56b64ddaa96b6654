"""Bodies as clients really send them: packed, in pieces, with a byte order mark, cut within an emoji."""

import gzip
import json
import socket
import zlib
from typing import Any

import pytest

from tests.product import Answer, Product

HAPPY = {"text": "I am so happy today!"}
BOMB = gzip.compress(b" " * 300_000_000, 9)


def post(product: Product, path: str, body: bytes, **headers: str) -> Answer:
    return product.call("POST", path, body, {"Authorization": f"Bearer {product.token}", **headers})


@pytest.mark.parametrize("packing", ["gzip", "GZIP", "x-gzip", "deflate", "identity", ""])
def test_a_packed_body_is_unpacked_on_every_route(product: Product, packing: str) -> None:
    pack = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}.get(packing.lower(), bytes)
    questions: list[tuple[str, dict[str, Any], str]] = [
        ("/emotion/detect", HAPPY, "joy"),
        ("/api/v1/predict", {"utterance": "mm-hm"}, "is_backchannel"),
        ("/v1/embeddings", {"input": "I am so happy today!"}, "embedding"),
        ("/emotion/detect", {"text": "so happy " * 200_000}, "joy"),
    ]
    for path, body, said in questions:
        answer = post(product, path, pack(json.dumps(body).encode()), **{"Content-Encoding": packing})
        assert answer.status == 200 and said in answer.body.decode()


@pytest.mark.parametrize(
    ("body", "packing", "status", "code", "said"),
    [
        (b"{}", "br", 415, "unsupported_encoding", "'br'"),
        (b"{}", "gzip, gzip", 415, "unsupported_encoding", "'gzip, gzip'"),
        (b"{}", "gzip", 400, "bad_request", "the body is no gzip"),
        (gzip.compress(b"{}" * 99)[:-9], "gzip", 400, "bad_request", "cut short"),
        (b"", "gzip", 400, "bad_request", "cut short"),
        (gzip.compress(b"{}") + b"more", "gzip", 400, "bad_request", "goes on after the end"),
        (BOMB, "gzip", 413, "body_too_large", "SIDECAR_MAX_BODY_BYTES"),
    ],
)
def test_what_cannot_be_unpacked_says_why(
    product: Product, body: bytes, packing: str, status: int, code: str, said: str
) -> None:
    for path in ("/emotion/detect", "/tts/synthesize"):
        answer = product.call(
            "POST", path, body, {"Authorization": f"Bearer {product.token}", "Content-Encoding": packing}, timeout_s=5
        )
        assert (answer.status, answer.json()["code"]) == (status, code) and said in answer.json()["detail"]
        assert answer.headers.get("accept-encoding") == ("deflate, gzip, x-gzip" if status == 415 else None)


def test_a_packed_upload_of_sound_has_its_own_limit(product: Product) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    packed = gzip.compress(head + b"RIFF" + bytes(3_000_000) + b"\r\n--b--\r\n")
    kind = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    answer = post(product, "/vad/detect", packed, **kind)
    assert answer.json()["code"] == "invalid_audio"


def test_chunks_that_pass_the_limit_at_their_end_are_refused_at_once(product: Product) -> None:
    head = f"POST /emotion/detect HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}"
    body = b"1e8490\r\n" + b"x" * 0x1E8490 + b"\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", product.port), timeout=5) as client:
        client.sendall(head.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/emotion/detect", b'\xef\xbb\xbf{"text": "I am so happy today!"}', "joy"),
        ("/emotion/detect", b'{"text": "I am so happy today! \\ud83d"}', "joy"),
        ("/emotion/detect", b'{"text": "\\uDE00\\uD83D I am so happy today! \\\\ud83d"}', "joy"),
        ("/emotion/detect/batch", b'{"texts": ["\\ud83d\\ude00 so happy", "happy \\ud83d"]}', "joy"),
        ("/api/v1/predict", b'{"utterance": "mm-hm", "previous_utterance": "\\ude00"}', '"is_backchannel":true'),
        ("/v1/embeddings", b'{"input": "\\ud83d"}', "embedding"),
    ],
)
def test_half_an_emoji_and_a_byte_order_mark_are_read(product: Product, path: str, body: bytes, said: str) -> None:
    answer = post(product, path, body)
    assert answer.status == 200 and said in answer.body.decode()


def test_half_an_emoji_changes_nothing_else(product: Product) -> None:
    """It reads as U+FFFD, whole pairs and escaped backslashes stay, and a fault still has its field's name."""

    def vector(text: bytes) -> Any:
        return post(product, "/v1/embeddings", b'{"input": "%s"}' % text).json()["data"][0]["embedding"]

    assert vector(rb"\ud83d\ude00 fun \\ud83d \ud83d") == vector("\U0001f600 fun \\\\ud83d \ufffd".encode())
    answer = post(product, "/emotion/detect", rb'{"text": 5, "model": "\ud83d"}')
    assert answer.status == 422 and answer.json()["detail"] == "text: Input should be a valid string"
