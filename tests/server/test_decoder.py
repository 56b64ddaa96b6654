"""The decoder's process: what a file can do to it, and what that does to everybody else."""

import asyncio
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from sidecar.errors import AudioError
from sidecar.server.audio import Audio, AudioSource, LocalFile, Upload, read_audio
from sidecar.server.decoder import SPEC
from sidecar.settings import ROOT, Settings
from tests.decoding import DECODING, Decoding
from tests.product import Answer, Product, alive, until
from tests.server.test_recordings import upload
from tests.sound import RATE, encode, tone, wav

MP3 = encode(tone(2.0), "mp3", "libmp3lame", RATE)
Start = Callable[..., Decoding]


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """Other tests count the children of this process."""
    yield
    DECODING.close()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Start]:
    """A decoder that can be brought down; its deadline and memory are what the test says."""
    python = tmp_path / "python"
    fixture = ROOT / "tests" / "fixtures" / "faulty_decoder.py"
    python.write_text(f'#!/bin/sh\nexec /usr/bin/env PYTHONPATH="{ROOT}" "{sys.executable}" "{fixture}" "$@"\n')
    python.chmod(0o755)
    made: list[Decoding] = []

    def start(timeout_s: float = 20.0, memory_limit_mb: int = 1024) -> Decoding:
        batch = SPEC.batch.model_copy(update={"timeout_s": timeout_s})
        spec = SPEC.model_copy(update={"batch": batch, "memory_limit_mb": memory_limit_mb})
        made.append(Decoding(spec, python))
        return made[-1]

    yield start
    for one in made:
        one.close()


def read(decoding: Decoding, data: bytes) -> Audio:
    return decoding.read(Upload(io.BytesIO(data)), Settings.load())


def told(decoding: Decoding, data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        read(decoding, data)
    return caught.value.message


@pytest.mark.parametrize("death", [b"!abort\n", b"!segv\n", b"!late\n"])
def test_a_file_that_crashes_it_is_named_after_a_second_try(faulty: Start, death: bytes) -> None:
    decoding = faulty()
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)
    assert "crashes the decoder" in told(decoding, death)
    assert decoding.decoder.slot.restarts == 2 and any("SIG" in line for line in decoding.lines)
    # It is there again at once, and the third crash of the same file is its last.
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)
    told(decoding, death)
    restarts = decoding.decoder.slot.restarts
    assert "again and again" in told(decoding, death) and decoding.decoder.slot.restarts == restarts
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)


def test_a_crash_costs_nobody_else_their_answer(faulty: Start, tmp_path: Path) -> None:
    decoding = faulty()
    slot = decoding.decoder.slot
    read(decoding, MP3)
    go = tmp_path / "go"
    waiting = b"!wait " + os.fsencode(go) + b"\n" + MP3
    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(read, decoding, waiting) for _ in range(3)]
        until(lambda: slot.batcher.flying == 3, "three under way")
        bad = threads.submit(told, decoding, b"!abort\n")
        until(lambda: slot.restarts, "the crash, over all of them")
        go.touch()
        sounds = [other.result(60).samples for other in others]
        assert "crashes the decoder" in bad.result(60)
    assert slot.restarts == 2 and slot.batcher.stats.retried == 4
    assert all(np.array_equal(each, sounds[0]) for each in sounds) and len(sounds[0]) > RATE


def test_many_bad_files_in_a_row_keep_no_good_one_waiting(faulty: Start) -> None:
    decoding = faulty()
    for number in range(3):
        told(decoding, b"!abort\n%d" % number)
    begun = time.monotonic()
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)
    assert time.monotonic() - begun < 12  # a model's runner would now rest for 15 s


def test_one_that_hangs_is_ended_and_said_to(faulty: Start) -> None:
    decoding = faulty(timeout_s=2.0)
    assert "no sign of life for 2 s" in told(decoding, b"!hang\n")
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux refuses memory to a process")
def test_a_bomb_bursts_within_its_limit(faulty: Start) -> None:
    decoding = faulty(memory_limit_mb=300)
    read(decoding, MP3)
    most = 0
    with ThreadPoolExecutor(1) as threads:
        bomb = threads.submit(told, decoding, b"!bomb\n")
        while not bomb.done():
            with_pid = decoding.pid
            if with_pid is not None:
                most = max(most, psutil.Process(with_pid).memory_info().rss)
        assert "more memory than there is (300 MiB)" in bomb.result()
    assert most < 450 << 20
    # Refused, not killed: nobody beside it would have had to be tried again.
    assert decoding.decoder.slot.restarts == 0
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)


def test_a_request_that_ends_ends_its_decoding_and_closes_its_file(faulty: Start, tmp_path: Path) -> None:
    decoding = faulty()
    slot = decoding.decoder.slot
    held = tmp_path / "held.mp3"
    held.write_bytes(b"!wait " + os.fsencode(tmp_path / "never") + b"\n" + MP3)
    settings = Settings.load(audio_folders=str(tmp_path))

    async def give_up() -> None:
        reading = asyncio.ensure_future(read_audio(LocalFile(str(held)), settings, decoding.decoder))
        while not slot.batcher.flying:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    decoding.run(give_up())
    until(lambda: not slot.batcher.flying, "nothing in flight")
    assert str(held) not in {each.path for each in psutil.Process().open_files()}
    (tmp_path / "never").touch()
    assert read(decoding, MP3).duration_s == pytest.approx(2.0, abs=0.1)


def test_what_was_opened_is_read_whatever_its_name_leads_to_by_then(faulty: Start, tmp_path: Path) -> None:
    """The file is checked and opened by the server; the decoder does not look at names."""
    decoding = faulty()
    slot = decoding.decoder.slot
    said, go = tmp_path / "said.mp3", tmp_path / "go"
    blocker = b"!wait " + os.fsencode(go) + b"\n" + MP3
    said.write_bytes(encode(tone(3.0), "mp3", "libmp3lame", RATE))
    settings = Settings.load(audio_folders=str(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        before = [threads.submit(read, decoding, blocker) for _ in range(5)]
        until(lambda: slot.batcher.flying + len(slot.batcher) == 5, "all seats taken")
        reading = threads.submit(decoding.read, LocalFile(str(said)), settings)
        until(lambda: slot.batcher.flying + len(slot.batcher) == 6, "it waits")
        other = tmp_path / "other.mp3"
        other.write_bytes(MP3)
        other.replace(said)
        go.touch()
        assert reading.result(60).duration_s == pytest.approx(3.0, abs=0.1)
        for each in before:
            each.result(60)


def test_an_upload_in_memory_on_disk_and_a_path_sound_the_same(tmp_path: Path) -> None:
    import tempfile

    path = tmp_path / "a.mp3"
    path.write_bytes(MP3)
    sources: list[AudioSource] = [LocalFile(str(path))]
    for max_size in (1, 1_000_000):
        spooled = tempfile.SpooledTemporaryFile(max_size)  # noqa: SIM115  (the reader closes it)
        spooled.write(MP3)
        sources.append(Upload(spooled))  # type: ignore[arg-type]
    sounds = [DECODING.read(source, Settings.load(audio_folders=str(tmp_path))).samples for source in sources]
    assert all(np.array_equal(each, sounds[0]) for each in sounds)


# In the product


def decoders(product: Product) -> list[psutil.Process]:
    def is_decoder(process: psutil.Process) -> bool:
        try:
            return process.cmdline()[-1:] == ["decoder"] and alive(process)
        except psutil.Error:
            return False

    return [each for each in product.runners() if is_decoder(each)]


def test_it_is_no_model_of_anybodys(launch: Callable[..., Product]) -> None:
    product = launch()
    assert not decoders(product)
    assert upload(product, "/vad/detect", wav(tone(1.0))).status == 200
    assert not decoders(product), "a plain WAV needs no decoder"
    assert upload(product, "/vad/detect", MP3).status == 200
    [process] = decoders(product)
    assert process.nice() == 5 if sys.platform != "win32" else process.nice()
    for path in ("/models", "/v1/models", "/api/ps", "/metrics", "/health"):
        assert b"decoder" not in product.call("GET", path).body, path
    assert product.call("POST", "/models/decoder/unload").status == 404
    assert product.call("POST", "/vad/detect", {"audio_path": "/x", "model": "decoder"}).status in (400, 404)


def test_it_is_ready_before_the_first_recording_where_one_is_expected(launch: Callable[..., Product]) -> None:
    product = launch(SIDECAR_PRELOAD="emotion,vad")
    until(lambda: decoders(product), "the decoder")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the decoder gets bytes: nobody sees when it is at it")
def test_killed_in_the_middle_it_comes_back_and_crashed_twice_it_is_the_files_fault(
    launch: Callable[..., Product], tmp_path: Path
) -> None:
    product = launch(SIDECAR_PRELOAD="vad", SIDECAR_AUDIO_FOLDERS=str(tmp_path))
    long = tmp_path / "long.mp3"
    minute = encode(tone(60.0), "mp3", "libmp3lame", RATE)
    server = product.handshake["server"]["pid"]
    until(lambda: decoders(product), "the decoder")
    assert upload(product, "/vad/detect", MP3).status == 200

    def strike(number: signal.Signals, times: int, asked: "Future[Answer]") -> int:
        struck: set[int] = set()
        while len(struck) < times and not asked.done():
            for process in decoders(product):
                if process.pid not in struck and _caught(process, long, asked):
                    struck.add(process.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
                        process.resume()
        return len(struck)

    cases = ((signal.SIGKILL, 1, 10, 200), (signal.SIGSEGV, 1, 10, 200), (signal.SIGSEGV, 2, 59, 422))
    for number, times, minutes, status in cases:
        long.write_bytes(minute * minutes)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(product.call, "POST", "/vad/detect", {"audio_path": str(long)}, timeout_s=120)
            assert strike(number, times, asked) == times
            answer = asked.result(120)
        assert answer.status == status, (number, times, answer.body)
    assert answer.json()["code"] == "invalid_audio" and answer.json()["retryable"] is False
    assert product.handshake["server"]["pid"] == server
    assert upload(product, "/vad/detect", MP3).status == 200


def _caught(process: psutil.Process, path: Path, asked: "Future[Answer]") -> bool:
    """Stopped while it reads the file. It runs for moments only, and stands still while one looks."""
    try:
        while not asked.done():
            process.suspend()
            if str(path) in {each.path for each in process.open_files()}:
                return True
            process.resume()
            time.sleep(0.002)
    except psutil.Error:
        pass
    return False


def test_it_ends_with_the_server(launch: Callable[..., Product]) -> None:
    product = launch(SIDECAR_PRELOAD="vad")
    until(lambda: decoders(product), "the decoder")
    [process] = decoders(product)
    product.server().kill()
    until(lambda: not alive(process), "the decoder gone", 15.0)
