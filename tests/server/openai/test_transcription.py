"""OpenAI's own Python client, unchanged, against `/v1/audio/transcriptions` and `/v1/audio/translations`."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.product import Product
from tests.prompts import load, plain, prompts
from tests.server.test_transcription import WHISPER
from tests.sound import RATE, encode, wav
from tests.tiny_whisper import SAYS, write_whisper

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def connected(product: Product) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key=product.token, max_retries=0)


@pytest.fixture(scope="module")
def client(product: Product) -> Iterator[openai.OpenAI]:
    with connected(product) as made:
        yield made


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a product whose speech model knows all languages, from a folder of its user."""
    folder = tmp_path_factory.mktemp("catalogue")
    write_whisper(folder / "tiny", multilingual=True)
    text = WHISPER.format(id="tiny-all", preference=50, languages="[]")
    text = text[: text.index("[source]")] + '[source]\npath = "tiny"\n'
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    with (
        Product(tmp_path_factory.mktemp("home"), SIDECAR_CATALOGUE=str(folder)) as product,
        connected(product) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def two(client: openai.OpenAI) -> tuple[str, bytes]:
    """Two sentences with a pause between them."""
    chosen = prompts(100)
    return "two.wav", wav(np.concatenate([load(chosen[2]), np.zeros(RATE, np.float32), load(chosen[6])]))


def ask(client: openai.OpenAI, file: Any, **options: Any) -> Any:
    return client.audio.transcriptions.create(**{"model": "whisper-1", "file": file, **options})


def test_json(client: openai.OpenAI, two: Any) -> None:
    heard = ask(client, two)
    assert "followed by the pound key" in plain(heard.text) and "check the number" in plain(heard.text)
    assert heard.usage.type == "duration" and heard.usage.seconds == 7
    assert ask(client, two, response_format="json", model="gpt-4o-transcribe").text == heard.text


def test_text(client: openai.OpenAI, two: Any) -> None:
    assert ask(client, two, response_format="text") == ask(client, two).text + "\n"


def test_subtitles(client: openai.OpenAI, two: Any) -> None:
    clock = r"\d\d:\d\d:\d\d"
    srt = ask(client, two, response_format="srt")
    cues = srt.strip().split("\n\n")
    assert len(cues) == 2
    for number, cue in enumerate(cues, 1):
        assert re.fullmatch(rf"{number}\n{clock},\d{{3}} --> {clock},\d{{3}}\n[^\n]+", cue), cue
    vtt = ask(client, two, response_format="vtt")
    head, *cues = vtt.strip().split("\n\n")
    assert head == "WEBVTT" and len(cues) == 2
    assert all(re.fullmatch(rf"{clock}\.\d{{3}} --> {clock}\.\d{{3}}\n[^\n]+", cue) for cue in cues)


def test_verbose_json(client: openai.OpenAI, two: Any) -> None:
    heard = ask(client, two, response_format="verbose_json")
    assert heard.language == "english" and heard.duration == pytest.approx(7.2, abs=0.7) and heard.words is None
    assert len(heard.segments) == 2 and heard.segments[1].id == 1
    for segment in heard.segments:
        assert segment.start < segment.end and segment.avg_logprob <= 0 <= segment.no_speech_prob <= 1
    assert "".join(segment.text for segment in heard.segments).strip() == heard.text
    words = ask(client, two, response_format="verbose_json", timestamp_granularities=["word"])
    assert words.segments is None and " ".join(word.word for word in words.words) == heard.text
    assert all(word.start < word.end <= heard.duration for word in words.words)
    both = ask(client, two, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert both.segments and both.words


def test_streaming(client: openai.OpenAI, two: Any) -> None:
    events = list(ask(client, two, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == ask(client, two).text


@pytest.mark.parametrize(
    ("container", "codec"), [("mp3", "libmp3lame"), ("webm", "libopus"), ("ipod", "aac"), ("ogg", "libopus")]
)
def test_files_as_they_come(client: openai.OpenAI, tmp_path: Path, container: str, codec: str) -> None:
    sound = np.repeat(load(prompts(100)[2]), 3)
    path = tmp_path / f"speech.{container}"
    path.write_bytes(encode(sound, container, codec, 48_000))
    assert "your password followed by the pound key" in plain(ask(client, path).text)
    with open(path, "rb") as file:
        assert "pound key" in plain(ask(client, file, language="en", prompt="Asterisk.", temperature=0.2).text)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_other_languages_and_translation(multilingual: openai.OpenAI, two: Any) -> None:
    heard = ask(multilingual, two, response_format="verbose_json")
    assert heard.language == "german" and SAYS.strip() in heard.text
    assert ask(multilingual, two, language="fr", response_format="verbose_json").language == "french"
    translated = multilingual.audio.translations.create(model="whisper-1", file=two)
    assert "This was foreign!" in translated.text
    for form in FORMATS:
        answer: Any = multilingual.audio.translations.create(model="tiny-all", file=two, response_format=form)
        text = answer if isinstance(answer, str) else answer.text
        assert "This was foreign!" in text
    verbose: Any = multilingual.audio.translations.create(model="whisper-1", file=two, response_format="verbose_json")
    assert verbose.language == "english"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_fields_of_ours_are_taken_as_extra_body(multilingual: openai.OpenAI) -> None:
    silence = ("silence.wav", wav(np.zeros(3 * RATE, np.float32)))
    unfiltered = {"vad_filter": False, "hotwords": "wonderful"}
    assert ask(multilingual, silence).text == ""
    assert ask(multilingual, silence, extra_body=unfiltered).text == SAYS.strip()
    translated = multilingual.audio.translations.create(model="whisper-1", file=silence, extra_body=unfiltered)
    assert translated.text == "This was foreign!"
    with pytest.raises(openai.BadRequestError, match="hotwords"):
        ask(multilingual, silence, extra_body={"hotwords": "x" * 4001})


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_an_english_model_translates_english(client: openai.OpenAI, two: Any) -> None:
    assert client.audio.translations.create(model="whisper-1", file=two).text == ask(client, two).text


@pytest.mark.parametrize(
    ("options", "error", "code", "param"),
    [
        ({"model": "whisper-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "minilm"}, openai.NotFoundError, "model_not_found", "model"),
        ({"file": ("a.wav", b"no sound at all")}, openai.BadRequestError, "invalid_audio", None),
        ({"file": ("a.wav", b"")}, openai.BadRequestError, "invalid_audio", None),
        ({"language": "klingon"}, openai.BadRequestError, "invalid_input", "language"),
        ({"language": "de"}, openai.BadRequestError, "invalid_input", None),
        ({"temperature": 7}, openai.BadRequestError, "invalid_input", "temperature"),
        ({"response_format": "diarized_json"}, openai.BadRequestError, "invalid_input", "response_format"),
        ({"timestamp_granularities": ["letter"]}, openai.BadRequestError, "invalid_input", None),
    ],
)
def test_errors_are_the_clients_own_types(
    client: openai.OpenAI,
    two: Any,
    options: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    with pytest.raises(error) as caught:
        ask(client, **{"file": two, **options})
    body: Any = caught.value.body
    assert body["code"] == code and body["message"] and body["type"] == "invalid_request_error"
    assert param is None or body["param"] == param


@pytest.mark.parametrize(
    "name",
    [
        "whisper-1 ",
        "gpt-4o-transcribe-diarize",
        "gpt-4o-mini-transcribe-2025-12-15",
        "pocketsphinx",
        "",
        "gpt-transcribe",
    ],
)
def test_other_names_of_models_that_clients_send(client: openai.OpenAI, two: Any, name: str) -> None:
    assert "pound key" in plain(ask(client, two, model=name).text)


def test_a_repositorys_name_is_its_model(client: openai.OpenAI, two: Any) -> None:
    with pytest.raises(openai.InternalServerError, match="models pull whisper-base-en"):
        ask(client, two, model="Systran/faster-whisper-base.en")


def test_fields_that_are_blank_or_longer_than_it_reads(client: openai.OpenAI, two: Any) -> None:
    blank = {"language": "", "prompt": "", "response_format": "", "temperature": "", "timestamp_granularities[]": ""}
    assert ask(client, two, extra_body=blank).text == ask(client, two, prompt="x " * 9000, language="auto").text


@pytest.mark.parametrize("said", ["word,segment", '["word", "segment"]', "word segment"])
def test_granularities_of_forms_that_cannot_repeat_a_field(client: openai.OpenAI, two: Any, said: str) -> None:
    heard = ask(client, two, response_format="verbose_json", extra_body={"timestamp_granularities[]": said})
    assert heard.words and heard.segments


def test_no_key_and_a_large_file(launch: Callable[..., Product]) -> None:
    product = launch(SIDECAR_MAX_AUDIO_BYTES="100000")
    with connected(product) as client, pytest.raises(openai.APIStatusError) as caught:
        ask(client, ("a.wav", wav(np.zeros(10 * RATE, np.float32))))
    assert caught.value.status_code == 413
    address = f"http://127.0.0.1:{product.port}/v1"
    with (
        openai.OpenAI(base_url=address, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        ask(stranger, ("a.wav", wav(np.zeros(RATE, np.float32))))


def test_a_file_object_without_a_name(client: openai.OpenAI, two: Any) -> None:
    assert ask(client, io.BytesIO(two[1])).text == ask(client, two).text


def test_the_asynchronous_client(product: Product, two: Any) -> None:
    import asyncio

    async def hear() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{product.port}/v1", api_key=product.token, max_retries=0
        ) as client:
            stream = await client.audio.transcriptions.create(model="whisper-1", file=two, stream=True)
            return [event.type async for event in stream]

    assert asyncio.run(hear())[-1] == "transcript.text.done"
