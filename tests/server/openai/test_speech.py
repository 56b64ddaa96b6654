"""OpenAI's own Python client, unchanged, against `/v1/audio/speech`."""

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import openai
import pytest

from tests.product import Product

TEXT = "The quick brown fox jumps over the lazy dog. And the dog does not mind it."


@pytest.fixture(scope="module")
def client(product: Product) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key=product.token, max_retries=0) as made:
        yield made


def seconds(data: bytes, format: str) -> float:
    if format == "pcm":
        return len(data) / 2 / 24_000
    with av.open(io.BytesIO(data)) as container:
        return float(sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)))


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_streams(client: openai.OpenAI, format: Any) -> None:
    started = time.perf_counter()
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=TEXT * 10, response_format=format
    ) as response:
        blocks, first_s = [], 0.0
        for block in response.iter_bytes(4096):
            first_s = first_s or time.perf_counter() - started
            blocks.append(block)
        whole_s = time.perf_counter() - started
    assert len(blocks) > 10 and first_s < whole_s
    assert seconds(b"".join(blocks), format) == pytest.approx(48, abs=12)
    assert response.headers["x-sample-rate"] == ("24000" if format in ("pcm", "opus") else "22050")


def test_mp3_is_what_nobody_asked_for(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="gpt-4o-mini-tts", voice="nova", input="Hello.")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert 0.3 < seconds(answer.content, "mp3") < 1.5


def test_speed_and_instructions(client: openai.OpenAI) -> None:
    def length(**options: Any) -> int:
        answer = client.audio.speech.create(
            model="tts-1-hd", voice="onyx", input=TEXT, response_format="pcm", **options
        )
        return len(answer.content)

    plain = length()
    assert plain / length(speed=0.25) == pytest.approx(0.25, rel=0.1)
    assert plain / length(speed=4.0) == pytest.approx(4.0, rel=0.2)
    assert length(instructions="Speak very slowly, please." + " " * 4000) > 1.2 * plain


def test_voices_of_theirs_are_voices_of_ours(client: openai.OpenAI) -> None:
    def voice(name: Any) -> str:
        answer = client.audio.speech.create(model="tts-1", voice=name, input="Hi.", response_format="wav")
        return answer.response.headers["x-voice"]

    names = ("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer", "verse", "marin")
    found = {name: voice(name) for name in (*names, "cedar")}
    assert all(each.startswith("en") for each in found.values())
    assert len(set(found.values())) == len(found), found
    assert found["alloy"] == "en-us+f1" and not any("whisper" in each for each in found.values())
    assert voice("de") == "de" and voice({"id": "fr"}) == "fr", "ours by their own names"


def test_voices_are_listed_for_who_lets_choose_one(client: openai.OpenAI, product: Product) -> None:
    listed = client.get("/audio/voices", cast_to=object)["voices"]  # type: ignore[index]
    assert listed == product.call("GET", "/tts/voices").json()["voices"]
    assert {"id", "name"} <= set(listed[0]) and listed[0]["id"] == "en-us"
    assert client.get("/audio/voices?model=tts-1", cast_to=object)["voices"] == listed  # type: ignore[index]
    with pytest.raises(openai.NotFoundError, match="tts-1"):
        client.get("/audio/voices?model=tts-99", cast_to=object)


def test_models_by_their_names(client: openai.OpenAI) -> None:
    for name in ("tts-1", "gpt-4o-mini-tts-2025-12-15", "espeak-ng", "espeak"):
        answer = client.audio.speech.create(model=name, voice="alloy", input="Hi.", response_format="wav")
        assert answer.response.headers["x-model"] == "espeak-ng"


def test_server_sent_events(client: openai.OpenAI, product: Product) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input=TEXT, response_format="pcm", stream_format="sse"
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) >= 2
    audio = np.frombuffer(b"".join(base64.b64decode(event["audio"]) for event in deltas), "<i2")
    assert 3 < len(audio) / 24_000 < 8 and np.abs(audio.astype(int)).max() > 5000
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("options", "error", "param", "told"),
    [
        ({"voice": "nobody"}, openai.BadRequestError, "voice", "en-us"),
        ({"input": " "}, openai.BadRequestError, None, "blank"),
        ({"input": ""}, openai.BadRequestError, "input", "input"),
        ({"speed": 9.0}, openai.BadRequestError, "speed", "less than or equal to 4"),
        ({"response_format": "ogg"}, openai.BadRequestError, "response_format", "mp3"),
        ({"model": "tts-99"}, openai.NotFoundError, "model", "tts-1"),
        ({"model": "minilm"}, openai.NotFoundError, "model", "tts"),
        ({"model": "kokoro"}, openai.InternalServerError, None, "pull kokoro"),
    ],
)
def test_errors_are_its_own_exceptions(
    client: openai.OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], param: str | None, told: str
) -> None:
    with pytest.raises(error) as raised:
        client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": "Hi.", **options})
    assert told in raised.value.message and raised.value.param == param  # type: ignore[attr-defined]


def test_a_wrong_key(product: Product) -> None:
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
