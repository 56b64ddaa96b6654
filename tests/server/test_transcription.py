"""`/asr/transcribe` and `/vad/detect` through the whole product: the embedded models, and a Whisper from a hub."""

import base64
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.broken import broken
from tests.hub import Hub
from tests.product import Answer, Product, cpu_s, idle, until
from tests.prompts import hearing_s, load, plain, prompts
from tests.sound import RATE, encode, pcm16, tone, wav
from tests.tiny_whisper import SAYS, files_of, write_whisper

WHISPER = """
id = "{id}"
title = "one that comes from the hub"
capabilities = ["asr"]
runtime = "ctranslate2"
licence = "MIT"
preference = {preference}
languages = {languages}
files = [{{ path = "model.bin" }}, {{ path = "config.json" }}, {{ path = "tokenizer.json" }}]

[source]
repo = "acme/{id}"
include = ["*.json", "vocabulary.*"]
"""


def upload(product: Product, path: str, data: bytes, accept: str = "*/*", **fields: Any) -> Answer:
    """A multipart request with the data as `file`."""
    body = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    )
    body += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + data + b"\r\n--b--\r\n"
    headers = {
        "Authorization": f"Bearer {product.token}",
        "Content-Type": "multipart/form-data; boundary=b",
        "Accept": accept,
    }
    return product.call("POST", path, body, headers, timeout_s=120)


def runner_pids(product: Product) -> set[int]:
    return {process.pid for process in product.runners()}


@pytest.fixture(scope="module")
def speech() -> bytes:
    return wav(load(prompts(100)[2]))


# The embedded models


def test_an_upload_is_transcribed(product: Product, speech: bytes) -> None:
    answer = upload(product, "/asr/transcribe", speech, word_timestamps="true", language="en-US")
    assert answer.status == 200, answer.body
    heard = answer.json()
    assert "password followed by the pound key" in plain(heard["text"])
    assert heard["model"] == "pocketsphinx-en-us" and heard["language"] == "en" and heard["processing_time_ms"] > 0
    assert heard["duration_s"] == pytest.approx(3.285, abs=0.01)
    segment = heard["segments"][0]
    assert {"id", "start", "end", "text", "confidence", "words"} <= set(segment) and 0 < segment["confidence"] <= 1
    assert " ".join(word["word"] for word in segment["words"]) == segment["text"]


def test_base64_path_and_bare_samples_say_the_same(product: Product, speech: bytes) -> None:
    path = product.home / "speech.wav"
    path.write_bytes(speech)
    sound = load(prompts(100)[2])
    bodies = [
        {"audio_path": str(path)},
        {"audio": base64.b64encode(speech).decode()},
        {"audio": base64.b64encode(pcm16(sound)).decode(), "sample_rate": RATE},
    ]
    texts = {product.call("POST", "/asr/transcribe", body, timeout_s=120).json()["text"] for body in bodies}
    assert texts == {upload(product, "/asr/transcribe", speech).json()["text"]}


def test_segments_are_streamed_as_lines_and_as_events(product: Product) -> None:
    sound = wav(np.concatenate([load(prompts(100)[2]), np.zeros(RATE, np.float32), load(prompts(100)[6])]))
    lines = upload(product, "/asr/transcribe", sound, accept="application/x-ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson" and lines.headers["transfer-encoding"] == "chunked"
    told = [json.loads(line) for line in lines.body.splitlines()]
    assert [each["type"] for each in told] == ["head", "segment", "segment", "final"]
    assert told[-1]["text"] == " ".join(each["text"] for each in told[1:-1]) and told[-1]["model"] == told[0]["model"]
    events = upload(product, "/asr/transcribe", sound, accept="text/event-stream")
    assert events.headers["content-type"].startswith("text/event-stream")
    blocks = events.body.decode().strip().split("\n\n")
    assert [json.loads(block.split("data: ")[1]) for block in blocks][:-1] == told[:-1]
    assert [block.split("\n")[0] for block in blocks] == [f"event: {each['type']}" for each in told]


def test_the_first_segment_comes_before_the_last_is_known(product: Product) -> None:
    import http.client
    import time

    sound = wav(np.concatenate([np.concatenate([load(each), np.zeros(RATE, np.float32)]) for each in prompts(30)]))
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=120)
    headers = {"Authorization": f"Bearer {product.token}", "Accept": "application/x-ndjson"}
    body = json.dumps({"audio": base64.b64encode(sound).decode()})
    connection.request("POST", "/asr/transcribe", body, headers)
    response = connection.getresponse()
    at, kinds = [], []
    for line in response:
        at.append(time.monotonic())
        kinds.append(json.loads(line)["type"])
    connection.close()
    assert kinds.count("segment") >= 20 and kinds[-1] == "final"
    assert at[1] - at[0] < (at[-1] - at[0]) / 3


@pytest.mark.parametrize("path", ["/asr/transcribe", "/v1/audio/transcriptions"])
def test_a_runner_that_dies_over_a_recording_is_followed_by_another(product: Product, path: str) -> None:
    data = wav(np.concatenate([load(each) for each in prompts(12)]))
    whole = upload(product, path, data).json()["text"]
    before_s = spent(product)
    killed = []

    def kill() -> None:
        runner = until(lambda: working(product, before_s), "work")
        runner.kill()
        killed.append(runner.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    answer = upload(product, path, data)
    killer.join()
    assert killed and answer.status == 200 and answer.json()["text"] == whole


def test_a_client_that_goes_ends_the_work(product: Product) -> None:
    samples = np.tile(np.concatenate([load(each) for each in prompts(20)]), 8)
    utterance_s = hearing_s(product, samples[: 15 * RATE])
    sound = wav(samples)
    connection = socket.create_connection(("127.0.0.1", product.port), timeout=60)
    body = json.dumps({"audio": base64.b64encode(sound).decode()}).encode()
    head = (
        f"POST /asr/transcribe HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}\r\n"
    )
    head += f"Accept: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    assert b'"head"' in connection.recv(1 << 16) + connection.recv(1 << 16)
    before_s = spent(product)
    runner = until(lambda: working(product, before_s), "work")
    connection.close()
    spent_s = cpu_s(runner)
    until(idle(runner), "the runner is idle")
    assert cpu_s(runner) < spent_s + 3 * utterance_s, "one utterance under way; the rest would have been thirty"


def spent(product: Product) -> dict[int, float]:
    """Processor time of each recogniser, by its pid."""
    return {each.pid: cpu_s(each) for each in product.runners() if each.cmdline()[-1] == "pocketsphinx-en-us"}


def working(product: Product, before_s: dict[int, float]) -> psutil.Process | None:
    """The recogniser that has computed since then."""
    grown = {pid: now_s - before_s.get(pid, 0.0) for pid, now_s in spent(product).items()}
    most = max(grown, key=lambda pid: grown[pid], default=0)
    return psutil.Process(most) if grown.get(most, 0.0) > 0.2 else None


def test_a_minute_of_silence_has_no_text(product: Product) -> None:
    silence = encode(np.zeros(60 * RATE, np.float32), "flac", "flac", RATE)
    heard = upload(product, "/asr/transcribe", silence).json()
    assert heard["text"] == "" and heard["segments"] == [] and heard["duration_s"] == 60.0


def test_voice_activity(product: Product, speech: bytes) -> None:
    sound = np.concatenate([np.zeros(2 * RATE, np.float32), load(prompts(100)[2]), np.zeros(2 * RATE, np.float32)])
    found = upload(product, "/vad/detect", wav(sound), min_silence_ms=400).json()
    assert found["model"] == "silero-vad-v6" and len(found["segments"]) == 1
    assert found["segments"][0]["start"] == pytest.approx(2.2, abs=0.2)
    assert found["segments"][0]["end"] == pytest.approx(5.2, abs=0.2)
    assert found["speech_ratio"] == pytest.approx(3 / 7.285, abs=0.05)
    finer = upload(product, "/vad/detect", wav(sound), min_silence_ms=20, speech_pad_ms=0).json()
    assert len(finer["segments"]) >= 2
    assert upload(product, "/vad/detect", wav(tone(2.0))).json()["segments"] == []
    assert upload(product, "/vad/detect", speech, threshold=2).status == 422


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"model": "nobody"}, 404, "nobody"),
        ({"model": "minilm"}, 404, "asr"),
        ({"model": "whisper-base-en"}, 503, "models pull whisper-base-en"),
        ({"language": "xx"}, 422, "language"),
        ({"language": "de"}, 422, "only English"),
        ({"task": "sing"}, 422, "task"),
        ({"temperature": "hot"}, 422, "temperature"),
        ({"beam_size": 1000}, 422, "beam_size"),
        ({"initial_prompt": "x" * 5000}, 422, "initial_prompt"),
        ({"keep_alive": "soon"}, 422, "keep_alive"),
    ],
)
def test_bad_options_are_named(
    product: Product, speech: bytes, fields: dict[str, Any], status: int, named: str
) -> None:
    answer = upload(product, "/asr/transcribe", speech, **fields)
    assert answer.status == status and named in answer.json()["detail"], answer.body


def test_missing_and_forbidden_paths(product: Product) -> None:
    missing = str(product.home / "nothing.wav")
    answer = product.call("POST", "/asr/transcribe", {"audio_path": missing})
    assert answer.status == 400 and answer.json()["detail"] == f"Audio file not found: {missing}"
    for path in ("/proc/self/environ", "/etc/passwd", "\\\\server\\share\\a.wav", "../a.wav"):
        answer = product.call("POST", "/asr/transcribe", {"audio_path": path})
        assert answer.status == 400 and answer.json()["detail"].startswith(f"Audio file not found: {path}")


@pytest.mark.slow
def test_two_hundred_broken_inputs_are_refused_and_no_process_dies(
    product: Product, speech: bytes, tmp_path: Path
) -> None:
    assert upload(product, "/asr/transcribe", speech).status == 200
    before, server = runner_pids(product), product.handshake["server"]["pid"]
    secret = tmp_path / "secret.wav"
    secret.write_bytes(speech)
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        for name, data in broken(f"http://127.0.0.1:{trap.getsockname()[1]}/x.wav", secret):
            answer = upload(product, "/asr/transcribe", data)
            assert 400 <= answer.status < 500, (name, answer.status, answer.body[:300])
            assert answer.headers["content-type"] == "application/problem+json" and answer.json()["detail"], name
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert runner_pids(product) >= before and product.handshake["server"]["pid"] == server
    assert upload(product, "/asr/transcribe", speech).status == 200


def test_large_bodies_are_for_audio_alone(launch: Callable[..., Product]) -> None:
    product = launch(SIDECAR_MAX_AUDIO_BYTES="5000000", SIDECAR_MAX_AUDIO_S="60")
    assert product.call("POST", "/emotion/detect", b" " * 3_000_000).status == 413
    assert upload(product, "/vad/detect", wav(tone(50.0, rate=30_000), 30_000)).status == 200
    answer = upload(product, "/vad/detect", bytes(6_000_000))
    assert answer.status == 413 and "SIDECAR_MAX_AUDIO_BYTES" in answer.json()["detail"]
    answer = upload(product, "/vad/detect", wav(tone(61.0)))
    assert answer.status == 413 and answer.json()["code"] == "audio_too_long"


def test_an_upload_that_no_disk_can_hold_is_told(launch: Callable[..., Product], tmp_path: Path, speech: bytes) -> None:
    """Larger ones wait in the temporary folder; that it is gone is as bad as that its disk is full."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    product = launch(TMPDIR=str(folder))
    large = wav(np.zeros(60 * RATE, np.float32))
    assert upload(product, "/vad/detect", large).status == 200
    shutil.rmtree(folder)
    answer = upload(product, "/vad/detect", large)
    assert answer.status == 507 and answer.json()["code"] == "disk_full" and str(folder) in answer.json()["detail"]
    assert upload(product, "/v1/audio/transcriptions", large).json()["error"]["code"] == "disk_full"
    assert upload(product, "/vad/detect", speech).status == 200, "small ones stay in memory"


def test_an_idle_server_loads_nothing_for_sound(launch: Callable[..., Product]) -> None:
    product = launch()
    maps = Path(f"/proc/{product.server().pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not show what a process has loaded (/proc)")
    loaded = maps.read_text(encoding="utf-8")
    assert not any(name in loaded for name in ("libavcodec", "soxr", "numpy"))
    assert upload(product, "/vad/detect", wav(tone(0.1, rate=8000), 8000)).status == 200
    assert "soxr" in maps.read_text(encoding="utf-8")
    # FFmpeg is not for the server at all: it has a process of its own.
    assert upload(product, "/vad/detect", encode(tone(0.5), "mp3", "libmp3lame", RATE)).status == 200
    assert "libavcodec" not in maps.read_text(encoding="utf-8")


# A Whisper from a hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def with_whisper(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Product]:
    """A product that knows two models of a hub: an English one, and one of all languages."""
    folder = tmp_path_factory.mktemp("catalogue")
    models = {"tiny-en": (50, '["en"]', False), "tiny-all": (5, "[]", True)}
    for name, (preference, languages, multilingual) in models.items():
        text = WHISPER.format(id=name, preference=preference, languages=languages)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        hub.add(f"acme/{name}", files_of(write_whisper(tmp_path_factory.mktemp(name), multilingual)))
    home = tmp_path_factory.mktemp("home")
    with Product(home, SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url) as running:
        assert upload(running, "/asr/transcribe", wav(tone(1.0))).json()["model"] == "pocketsphinx-en-us"
        for name in models:
            assert running.call("POST", f"/models/{name}/download", b"").status == 202
        for name in models:
            until(lambda: running.call("GET", f"/models/{name}").json()["state"] in ("available", "ready"), name)
        until(lambda: running.call("GET", "/models/tiny-en").json()["active_for"] == ["asr"], "takes over")
        yield running


def test_a_better_model_takes_over_and_answers_as_by_itself(with_whisper: Product, speech: bytes) -> None:
    heard = upload(with_whisper, "/asr/transcribe", speech, word_timestamps="true").json()
    assert heard["model"] == "tiny-en" and heard["text"] == SAYS.strip()
    assert [word["word"] for word in heard["segments"][0]["words"]] == SAYS.split()


def test_another_language_finds_the_model_that_knows_it(with_whisper: Product, speech: bytes) -> None:
    heard = upload(with_whisper, "/asr/transcribe", speech, language="german").json()
    assert (heard["model"], heard["language"]) == ("tiny-all", "de")
    heard = upload(with_whisper, "/asr/transcribe", speech, task="translate").json()
    assert heard["model"] == "tiny-all" and heard["text"] == "This was foreign!"
    assert upload(with_whisper, "/asr/transcribe", speech, language="de", model="tiny-en").status == 422


def test_the_filter_is_on_unless_it_is_turned_off(with_whisper: Product) -> None:
    silence = wav(np.zeros(60 * RATE, np.float32))
    assert upload(with_whisper, "/asr/transcribe", silence).json()["text"] == ""
    assert upload(with_whisper, "/asr/transcribe", silence, vad_filter="false").json()["text"]


@pytest.mark.parametrize("path", ["/asr/transcribe", "/v1/audio/transcriptions", "/v1/audio/translations"])
def test_keep_alive_zero_takes_the_model_out_of_memory(with_whisper: Product, speech: bytes, path: str) -> None:
    def is_loaded() -> bool:
        return bool(with_whisper.call("GET", "/models/tiny-all").json()["state"] == "ready")

    assert upload(with_whisper, path, speech, model="tiny-all", keep_alive="5m").status == 200 and is_loaded()
    assert upload(with_whisper, path, speech, model="tiny-all", keep_alive="0").status == 200
    until(lambda: not is_loaded(), "unloaded")
    refused = upload(with_whisper, path, speech, model="tiny-all", keep_alive="soon")
    assert refused.status in (400, 422) and "keep_alive" in refused.body.decode()
