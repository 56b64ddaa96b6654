"""Errors name the field that was sent, in its sender's words: natively, to OpenAI's clients, and in tensors."""

import json
from typing import Any

import pytest

from tests.product import Answer, Product

BOUNDARY = "in-between"


@pytest.mark.parametrize(
    ("path", "body", "field", "said"),
    [
        ("/emotion/detect", {"text": "x", "keep_alive": []}, "keep_alive", "a valid number or a valid string"),
        ("/emotion/detect", {"text": "x", "keep_alive": True}, "keep_alive", "a valid number or a valid string"),
        ("/emotion/detect", {"text": 5}, "text", "a valid string"),
        ("/emotion/detect", {"text": float("nan")}, "text", "a valid string"),
        ("/emotion/detect", {}, "text", "Field required"),
        ("/emotion/detect", [1], "body", "an object"),
        ("/emotion/detect/batch", {"texts": ["x", 5]}, "texts.1", "a valid string"),
        ("/api/v1/predict/batch", {"utterances": ["yes", ""]}, "utterances.1", "at least 1 character"),
        ("/api/v1/predict/batch", {"utterances": [{"utterance": ""}]}, "utterances.0.utterance", "at least 1"),
        ("/api/v1/predict/batch", {"utterances": [7]}, "utterances.0", "an object"),
        ("/classify/minilm/batch", {"texts": [{"text": "x", "text_pair": 5}]}, "texts.0.text_pair", "valid string"),
        ("/tts/synthesize", {"text": "x", "speed": "fast"}, "speed", "a valid number"),
        ("/tts/synthesize", {"text": "x", "speed": float("nan")}, "speed", "less than or equal to 4"),
        ("/tts/synthesize?timings=never", {"text": "x"}, "timings", "phonemes"),
        ("/v1/audio/speech", {"input": "x", "voice": 5}, "voice", "a valid string or an object"),
        ("/v1/audio/speech", {"input": "x", "voice": {"name": "x"}}, "voice.id", "Field required"),
        ("/v1/audio/speech", {"input": "x", "voice": {"id": 5}}, "voice.id", "a valid string"),
        ("/v1/embeddings", {"input": []}, "input", "at least one"),
        ("/v1/embeddings", {"input": ["x", True]}, "input", "text itself"),
    ],
)  # fmt: skip
def test_the_field_is_that_of_the_sender(product: Product, path: str, body: Any, field: str, said: str) -> None:
    answer = product.call("POST", path, json.dumps(body).encode())
    if path.startswith("/v1/"):
        error = answer.json()["error"]
        assert answer.status == 400 and error["param"] == (None if field == "body" else field), error
        told = error["message"]
    else:
        assert answer.status == 422 and answer.json()["code"] == "invalid_input", answer.body
        told = answer.json()["detail"]
    assert told.startswith(f"{field}: ") and said in told
    for internal in ("more)", "function", "Request", "VoiceId", "constrained"):
        assert internal not in told


@pytest.mark.parametrize(
    ("path", "name", "item", "said"),
    [
        ("/emotion/detect/batch", "texts", b"1", "at most 256"),
        ("/api/v1/predict/batch", "utterances", b"1", "are more than 32 (MAX_BATCH_SIZE)"),
        ("/api/v1/predict/batch", "utterances", b"{}", "are more than 32 (MAX_BATCH_SIZE)"),
        ("/classify/minilm/batch", "texts", b"{}", "at most 256"),
        ("/v1/embeddings", "input", b"null", "texts are more than 2048"),
    ],
)  # fmt: skip
def test_a_body_full_of_faults_holds_nobody_up(product: Product, path: str, name: str, item: bytes, said: str) -> None:
    count = 1_990_000 // (len(item) + 1)
    answer = product.call("POST", path, b'{"%s":[%s]}' % (name.encode(), b",".join([item] * count)), timeout_s=10)
    told = answer.json()
    assert answer.status in (400, 422) and said in (told.get("detail") or told["error"]["message"])


def test_further_fields_are_counted_once_each(product: Product) -> None:
    answer = product.call("POST", "/emotion/detect", {"keep_alive": [], "model": 5})
    assert answer.json()["detail"] == "model: Input should be a valid string (and 2 more)"


def test_a_value_is_not_repeated_at_length(product: Product) -> None:
    answer = product.call("POST", "/emotion/detect", {"text": "x", "model": "m" * 1_900_000})
    assert answer.status == 404 and len(answer.body) < 2000


def test_a_row_of_tensors_is_named(product: Product) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x", "y"]}
    answer = product.call("POST", "/v2/models/emotion/infer", {"inputs": [tensor], "parameters": {"keep_alive": []}})
    assert answer.status == 422
    assert answer.json() == {"error": "row 0: keep_alive: Input should be a valid number or a valid string"}


def form(product: Product, path: str, *parts: tuple[str, str | None, bytes]) -> Answer:
    """A multipart request of parts (name, filename, content)."""
    body = b""
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        body += content + b"\r\n"
    body += f"--{BOUNDARY}--\r\n".encode()
    headers = {
        "Authorization": f"Bearer {product.token}",
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    return product.call("POST", path, body, headers)


SOUND = ("file", "a.wav", b"RIFF")


@pytest.mark.parametrize("path", ["/asr/transcribe", "/v1/audio/transcriptions", "/align/phonemes"])
@pytest.mark.parametrize(
    ("parts", "param", "said"),
    [
        ([("text", None, b"hello")], "file", "as `file` (upload), `audio` (base64) or `audio_path`: found none"),
        ([SOUND, SOUND], "file", "2 files came (file, file): send one, as `file`"),
        ([SOUND, ("more", "b.wav", b"RIFF")], "file", "2 files came (file, more): send one, as `file`"),
        ([("recording", "a.wav", b"RIFF")], "recording", "recording: is a file upload; only the part `file` may"),
        ([("audio", "a.wav", b"RIFF")], "audio", "audio: is a file upload; only the part `file` may"),
        ([("file", None, b"RIFF")], "file", "`file` is no file upload: in multipart/form-data it needs a filename"),
        ([SOUND, ("audio_path", None, b"/tmp/x")], "file", "found file and audio_path"),
        ([SOUND, ("sample_rate", None, b"fast")], "sample_rate", "'fast' is no whole number"),
        ([SOUND, ("text", None, b"x"), ("keep_alive", None, b"5m"), ("keep_alive", None, b"6m")], None, ""),
    ],
)  # fmt: skip
def test_a_form_with_the_wrong_parts_says_which(
    product: Product, path: str, parts: list[tuple[str, str | None, bytes]], param: str | None, said: str
) -> None:
    answer = form(product, path, *parts)
    assert answer.status in (400, 422), answer.body
    if param is None:
        return
    if path.startswith("/v1/"):
        assert answer.json()["error"]["param"] == param
        assert said in answer.json()["error"]["message"]
    else:
        assert answer.json()["code"] == "invalid_input" and said in answer.json()["detail"]


def test_a_form_that_is_none_says_why(product: Product) -> None:
    headers = {"Authorization": f"Bearer {product.token}", "Content-Type": "multipart/form-data"}
    answer = product.call("POST", "/asr/transcribe", b"x", headers)
    assert (
        answer.status == 400
        and answer.json()["detail"] == "the multipart body cannot be read: Missing boundary in multipart."
    )


def test_openais_names_are_kept_where_ours_differ(product: Product) -> None:
    answer = form(
        product,
        "/v1/audio/transcriptions",
        SOUND,
        ("model", None, b"whisper-1"),
        ("response_format", None, b"x" * 5000),
    )
    assert answer.status == 400 and answer.json()["error"]["param"] == "response_format"
