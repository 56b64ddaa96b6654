"""Speech over HTTP from the embedded voice: streamed, timed, flat in memory, and ended when nobody listens."""

import base64
import contextlib
import http.client
import io
import json
import shutil
import socket
import statistics
import threading
import time
import wave
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from tests.product import Answer, Product, cpu_s, idle, until
from tests.voices import piper_files, without_durations, write

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all."
WORDS_2000 = " ".join(f"Sentence {number} says that the quick brown fox jumps over it." for number in range(182))
FIRST_BYTE_S = 0.06


@contextlib.contextmanager
def opened(
    product: Product, path: str, body: dict[str, Any], more: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """A response whose body is read by the caller, or not at all."""
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=60)
    headers = {"Authorization": f"Bearer {product.token}", "Content-Type": "application/json", **(more or {})}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


def synthesize(product: Product, text: str, **options: Any) -> Any:
    return product.call("POST", "/tts/synthesize", {"text": text, **options}, timeout_s=60)


def runner_of(product: Product) -> psutil.Process:
    return until(
        lambda: next((runner for runner in product.runners() if "espeak-ng" in runner.cmdline()), None), "its runner"
    )


def test_a_sentence_is_a_wav_whose_header_is_right(product: Product) -> None:
    answer = synthesize(product, SENTENCE)
    assert answer.status == 200 and answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-model"] == "espeak-ng" and answer.headers["x-voice"] == "en-us"
    with wave.open(io.BytesIO(answer.body)) as file:
        assert str(file.getframerate()) == answer.headers["x-sample-rate"] == "22050"
        assert 4 < file.getnframes() / 22_050 < 8 and file.getnframes() * 2 == len(answer.body) - 44


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("pcm", "audio/pcm"),
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg; codecs=opus"),
        ("flac", "audio/flac"),
        ("aac", "audio/aac"),
    ],
)
def test_formats(product: Product, format: str, media_type: str) -> None:
    answer = synthesize(product, SENTENCE, format=format)
    assert answer.status == 200 and answer.headers["content-type"] == media_type
    if format == "pcm":
        seconds = len(answer.body) / 2 / int(answer.headers["x-sample-rate"])
    else:
        with av.open(io.BytesIO(answer.body)) as container:
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert seconds == pytest.approx(len(synthesize(product, SENTENCE, format="pcm").body) / 44_100, abs=0.12)


def test_the_first_byte_comes_at_once(product: Product) -> None:
    taken = []
    for _ in range(25):
        started = time.perf_counter()
        with opened(product, "/tts/synthesize", {"text": SENTENCE}) as response:
            assert response.read(1)
            taken.append(time.perf_counter() - started)
            response.read()
    assert statistics.median(taken[3:]) <= FIRST_BYTE_S, taken


def test_a_long_text_is_heard_long_before_it_is_made(product: Product) -> None:
    shares = []
    for _ in range(3):
        started = time.perf_counter()
        with opened(product, "/tts/synthesize", {"text": WORDS_2000, "format": "flac"}) as response:
            assert len(response.read(2000)) == 2000
            first_s = time.perf_counter() - started
            size = len(response.read())
            shares.append(first_s / (time.perf_counter() - started))
        assert response.status == 200 and size > 5_000_000
    assert min(shares) < 1 / 8, shares


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_long_text_with_times_is_not_held_in_memory(product: Product, format: str) -> None:
    server = product.server()
    synthesize(product, "Hello.", format=format)  # what the first of its kind imports
    before, most, done = server.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, server.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    body = {"text": WORDS_2000, "format": format}
    try:
        spoken = product.call("POST", "/tts/synthesize?timings=phonemes", body, timeout_s=60).json()
    finally:
        done.set()
        watching.join()
    audio = base64.b64decode(spoken["audio"], validate=True)
    with av.open(io.BytesIO(audio)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert samples / spoken["sample_rate"] == pytest.approx(spoken["duration_s"], abs=0.01)
    assert spoken["duration_s"] > 300 and spoken["words"][-1]["end_ms"] <= spoken["duration_s"] * 1000
    if format == "wav":
        with wave.open(io.BytesIO(audio)) as file:
            assert file.getnframes() == samples
        assert most - before < len(audio) * 0.9  # all of it, its base64 and the JSON were 3.7 times that


def test_times_of_words_and_phonemes(product: Product) -> None:
    answer = product.call("POST", "/tts/synthesize?timings=phonemes", {"text": "Hello there. The coffee is $3.50!"})
    spoken = answer.json()
    assert answer.status == 200 and spoken["model"] == "espeak-ng" and spoken["voice"] == "en-us"
    assert [word["word"] for word in spoken["words"]] == ["Hello", "there", "The", "coffee", "is", "$3.50"]
    with wave.open(io.BytesIO(base64.b64decode(spoken["audio"]))) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(spoken["duration_s"], abs=1e-3)
        audio = np.frombuffer(file.readframes(10**9), "<i2").astype(float)
    phonemes = spoken["phonemes"]
    assert phonemes[0]["ipa"] == "h" and phonemes[-1]["end_ms"] <= spoken["duration_s"] * 1000 + 1
    assert all(one["end_ms"] <= other["start_ms"] + 0.2 for one, other in pairwise(phonemes))
    # The pause between the two sentences is silence, and the words round it are not.
    there, following = spoken["words"][1], spoken["words"][2]
    rate = spoken["sample_rate"] / 1000
    gap = audio[int((there["end_ms"] + 60) * rate) : int((following["start_ms"] - 20) * rate)]
    word = audio[int(following["start_ms"] * rate) : int(following["end_ms"] * rate)]
    assert len(gap) > 1000 and np.abs(gap).max() < np.abs(word).max() / 20


def test_times_come_from_the_next_voice_where_the_best_tells_none(
    launch: Callable[..., Product], tmp_path: Path
) -> None:
    folder = tmp_path / "catalogue"
    write(folder / "tiny", files := without_durations(piper_files()))
    entry = 'title = "t"\ncapabilities = ["tts"]\nruntime = "piper"\nlicence = "MIT"\nlanguages = ["en-US"]\n'
    paths = ", ".join(f'{{ path = "{path}" }}' for path in files)
    for name, preference in (("mute", 70), ("dumb", 60)):
        text = f'id = "{name}"\n{entry}preference = {preference}\nfiles = [{paths}]\n[source]\npath = "tiny"\n'
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    product = launch(SIDECAR_CATALOGUE=str(folder), SIDECAR_PRELOAD="vad")
    assert synthesize(product, "Hi.").headers["x-model"] == "mute"

    def timed(**options: Any) -> Answer:
        return product.call("POST", "/tts/synthesize?timings=phonemes", {"text": "Hello there.", **options})

    for options in ({}, {"language": "en-US"}):
        spoken = timed(**options)
        assert spoken.status == 200, spoken.body
        told = spoken.json()
        assert told["model"] == "espeak-ng" and [word["word"] for word in told["words"]] == ["Hello", "there"]
    for options in ({"model": "mute"}, {"model": "dumb"}, {"voice": "en_US-tiny-medium"}):
        refused = timed(**options)
        assert refused.status == 422 and refused.json()["code"] == "timings_not_told", refused.body
        assert "espeak-ng does" in refused.json()["detail"]
    assert synthesize(product, "Hi.").headers["x-model"] == "mute", "only the times are another's"


def test_times_can_be_streamed_line_by_line(product: Product) -> None:
    headers = {"Authorization": f"Bearer {product.token}", "Accept": "application/x-ndjson"}
    body = json.dumps({"text": "Hello there. Good bye."}).encode()
    answer = product.call("POST", "/tts/synthesize?timings=phonemes", body, headers)
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, second = (json.loads(line) for line in answer.body.splitlines())
    assert (first["text"], second["text"]) == ("Hello there.", "Good bye.")
    length_ms = len(base64.b64decode(first["audio"])) / 2 / first["sample_rate"] * 1000
    assert second["words"][0]["start_ms"] >= length_ms - 0.1 > first["words"][-1]["end_ms"]


def test_voices_are_listed(product: Product) -> None:
    voices = product.call("GET", "/tts/voices").json()["voices"]
    assert voices[0] == {
        "id": "en-us",
        "name": "English (America)",
        "language": "en-US",
        "gender": "male",
        "model": "espeak-ng",
    }
    assert len(voices) > 120 and {"de", "fr", "cmn", "en-us+f3"} <= {voice["id"] for voice in voices}


def test_voice_language_emotion_and_description(product: Product) -> None:
    plain = synthesize(product, SENTENCE).body
    assert synthesize(product, SENTENCE, voice="de").headers["x-voice"] == "de"
    assert synthesize(product, SENTENCE, language="fr-FR").headers["x-voice"] == "fr"
    assert len(synthesize(product, SENTENCE, emotion="sadness").body) > 1.08 * len(plain)
    assert len(synthesize(product, SENTENCE, emotion="fear").body) < 0.95 * len(plain)
    assert len(synthesize(product, SENTENCE, description="He speaks very slowly.").body) > 1.2 * len(plain)
    assert len(synthesize(product, SENTENCE, speed=2.0).body) < 0.55 * len(plain)


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        ({}, 422, "invalid_input", "text"),
        ({"text": "  \n "}, 422, "invalid_input", "blank"),
        ({"text": "\u200b\x00"}, 422, "invalid_input", "blank"),
        ({"text": "x" * 100_001}, 422, "invalid_input", "text"),
        ({"text": "x", "voice": "nobody"}, 422, "voice_not_found", "en-us"),
        ({"text": "x", "voice": "../../etc/passwd"}, 422, "voice_not_found", "GET /tts/voices"),
        ({"text": "x", "language": "tlh"}, 422, "voice_not_found", "tlh"),
        ({"text": "x", "emotion": "furious"}, 422, "invalid_input", "anger"),
        ({"text": "x", "speed": 5}, 422, "invalid_input", "speed"),
        ({"text": "x", "format": "ogg"}, 422, "invalid_input", "format"),
        ({"text": "x", "model": "nothing"}, 404, "model_not_found", "nothing"),
        ({"text": "x", "model": "minilm"}, 404, "model_not_found", "tts"),
        ({"text": "x", "model": "kokoro-82m"}, 503, "model_unavailable", "pull kokoro-82m"),
        ({"text": "x", "keep_alive": "soon"}, 422, "invalid_input", "keep_alive"),
    ],
)
def test_errors_name_the_thing_and_the_cure(
    product: Product, body: dict[str, Any], status: int, code: str, told: str
) -> None:
    answer = product.call("POST", "/tts/synthesize", body)
    assert (answer.status, answer.json()["code"]) == (status, code) and told in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_bodies_that_are_no_json_and_wrong_methods(product: Product) -> None:
    assert product.call("POST", "/tts/synthesize", b"{").status == 400
    assert product.call("GET", "/tts/synthesize").status == 405
    assert product.call("POST", "/tts/synthesize?timings=words", {"text": "x"}).status == 422


def test_markup_is_read_out(product: Product) -> None:
    plain = len(synthesize(product, "a b").body)
    for text in ('a <break time="30s"/> b', "<speak>a b</speak>", "a [[_:_:_:]] b", "{{a}} ${b}"):
        answer = synthesize(product, text)
        assert answer.status == 200 and plain < len(answer.body) < 12 * 44_100


def test_many_at_once_get_their_own_speech(product: Product) -> None:
    texts = [f"This is what listener {name} asked for" for name in ("Anna", "Bert", "Carl", "Dora", "Emil", "Finn")]
    heard: dict[str, list[str]] = {}

    def listen(text: str) -> None:
        answer = product.call("POST", "/tts/synthesize?timings=phonemes", {"text": text}).json()
        heard[text] = [word["word"] for word in answer["words"]]

    threads = [threading.Thread(target=listen, args=(text,)) for text in texts for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {text: text.split() for text in texts}


@pytest.mark.slow
def test_memory_is_flat_over_a_long_text(product: Product) -> None:
    """2,000 words are about 13 minutes, 34 MB of PCM, none of which may be kept."""
    processes = [product.server(), runner_of(product)]

    def listen() -> list[int]:
        most = [0, 0]
        with opened(product, "/tts/synthesize", {"text": WORDS_2000}) as response:
            size = 0
            while block := response.read(1 << 18):
                size += len(block)
                most = [max(peak, process.memory_info().rss) for peak, process in zip(most, processes, strict=True)]
        assert size > 25_000_000
        return most

    listen()
    before = [process.memory_info().rss for process in processes]
    for _ in range(3):
        most = listen()
        growth_mib = [(peak - start) / (1 << 20) for peak, start in zip(most, before, strict=True)]
        assert max(growth_mib) < 12, growth_mib


@pytest.mark.slow
def test_a_listener_that_stops_reading_holds_nobody_up_and_costs_nothing(product: Product) -> None:
    runner, server = runner_of(product), product.server()
    synthesize(product, SENTENCE)
    told = product.log().count("POST /tts/synthesize 200")
    before = server.memory_info().rss
    stalled = [socket.create_connection(("127.0.0.1", product.port)) for _ in range(6)]
    body = json.dumps({"text": WORDS_2000 * 4}).encode()
    head = (
        f"POST /tts/synthesize HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}\r\n"
    )
    for connection in stalled:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        # More of them than the runner takes at a time: each has its portion, and then waits outside.
        until(idle(runner), "the runner at rest though nobody has read")
        assert server.memory_info().rss - before < 80 << 20
        started = time.perf_counter()
        assert synthesize(product, SENTENCE).status == 200
        assert time.perf_counter() - started < 10, "whom they hold up waits for ever"
        spent = cpu_s(runner)
    finally:
        for connection in stalled:
            connection.close()
    until(idle(runner), "the runner at rest after they have gone")
    assert cpu_s(runner) - spent < 1.0
    until(lambda: product.log().count("POST /tts/synthesize 200") >= told + 7, "the requests ended")


def test_leaving_ends_the_work(product: Product) -> None:
    runner = runner_of(product)
    with opened(product, "/tts/synthesize", {"text": WORDS_2000 * 4, "format": "mp3"}) as response:
        assert response.read(1000)
    spent = cpu_s(runner)
    until(idle(runner), "the runner at rest")
    assert cpu_s(runner) - spent < 1.0, "the rest would have taken seconds"
    assert synthesize(product, SENTENCE).status == 200


def test_a_runner_that_dies_between_two_portions_is_not_missed(launch: Callable[..., Product]) -> None:
    product = launch()
    whole = len(synthesize(product, WORDS_2000, format="pcm").body)
    with opened(product, "/tts/synthesize", {"text": WORDS_2000, "format": "pcm"}) as response:
        heard = len(response.read(1000))
        runner = runner_of(product)
        # Nobody reads: the portion under way is made, and the next one is not asked for.
        until(idle(runner), "the runner at rest")
        runner.kill()
        heard += len(response.read())
    # The voice flutters from one saying to the next.
    assert heard == pytest.approx(whole, rel=0.01)
    assert "broke off" not in product.log()


def test_a_disk_that_cannot_hold_the_whole_is_told(launch: Callable[..., Product], tmp_path: Path) -> None:
    """That the folder is gone is as bad as that its disk is full."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    product = launch(TMPDIR=str(folder))

    def timed(text: str, **headers: str) -> Answer:
        headers["Authorization"] = f"Bearer {product.token}"
        return product.call("POST", "/tts/synthesize?timings=phonemes", json.dumps({"text": text}).encode(), headers)

    assert timed(WORDS_2000).status == 200
    shutil.rmtree(folder)
    answer = timed(WORDS_2000)
    assert (answer.status, answer.json()["code"]) == (507, "disk_full") and str(folder) in answer.json()["detail"]
    assert timed(SENTENCE).status == 200, "small ones stay in memory"
    assert len(timed(WORDS_2000, Accept="application/x-ndjson").body.splitlines()) == 182, "the cure it names"


def test_a_runner_that_dies_between_two_sentences_is_not_missed(launch: Callable[..., Product]) -> None:
    product = launch()
    # Portions of 40 sentences. Slow speech is slow to make, too: the runner is in the middle of one each time.
    sentences = [f"This is number {number} of all." for number in range(100)]
    headers, body = {"Accept": "application/x-ndjson"}, {"text": " ".join(sentences), "speed": 0.25}
    with opened(product, "/tts/synthesize?timings=phonemes", body, headers) as response:
        heard = [json.loads(response.readline())]
        runner_of(product).kill()
        heard += [json.loads(response.readline()) for _ in range(45)]
        runner_of(product).kill()
        heard += [json.loads(line) for line in response.readlines()]
    assert [line["text"] for line in heard] == sentences
    starts = [line["words"][0]["start_ms"] for line in heard]
    assert all(one < other for one, other in pairwise(starts))


@contextlib.contextmanager
def runners_dying(product: Product) -> Iterator[None]:
    """None of them lives long enough to speak."""
    left = threading.Event()

    def kill() -> None:
        while not left.wait(0.01):
            for runner in product.runners():
                with contextlib.suppress(psutil.NoSuchProcess):
                    runner.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        left.set()
        killer.join()


def test_runners_that_go_on_dying_cut_the_stream_off(launch: Callable[..., Product]) -> None:
    product = launch()
    with opened(product, "/tts/synthesize", {"text": WORDS_2000 * 4, "format": "mp3"}) as response:
        assert response.read(1000)
        # No clean end: nobody may take what has come for the whole.
        with runners_dying(product), pytest.raises((http.client.IncompleteRead, ConnectionError)):
            while response.read(1 << 16):
                pass
    until(lambda: "broke off" in product.log(), "the log says so")
    until(lambda: synthesize(product, SENTENCE).status == 200, "speech once its runner lives")
    headers = {"Accept": "application/x-ndjson"}
    with opened(product, "/tts/synthesize?timings=phonemes", {"text": WORDS_2000 * 4}, headers) as response:
        assert json.loads(response.readline())["text"]
        with runners_dying(product):
            told = json.loads(response.readlines()[-1])
    assert told["type"] == "error" and told["code"] in ("runner_crashed", "model_load_failed") and told["message"]
