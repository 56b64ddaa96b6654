"""The audio reader: what it takes, what it refuses, and what a file cannot make it do."""

import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.requests import Request

from sidecar.capabilities import samples
from sidecar.capabilities.samples import Sound, free
from sidecar.errors import AudioError, AudioNotFoundError, AudioTooLongError, BadRequestError, InputError
from sidecar.server.audio import Audio, AudioSource, Encoded, LocalFile, Upload, audio_source
from sidecar.server.inline import parse
from sidecar.server.problem import STATUS
from sidecar.settings import ROOT, Settings
from tests.broken import broken
from tests.decoding import DECODING
from tests.product import until
from tests.sound import RATE, encode, pcm16, tone, wav, wav_float


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """Other tests count the children of this process."""
    yield
    DECODING.close()


def read(source: AudioSource | bytes, sample_rate: int | None = None, **settings: Any) -> Audio:
    if isinstance(source, bytes):
        source = Upload(io.BytesIO(source), sample_rate)
    return DECODING.read(source, Settings.load(**settings))


def loudest_hz(audio: Audio) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(audio.samples))) / audio.duration_s)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "layout"),
    [
        ("wav", "pcm_s16le", 44_100, "stereo"),
        ("wav", "pcm_u8", 8000, "mono"),
        ("wav", "pcm_s24le", 96_000, "5.1"),
        ("wav", "pcm_f32le", 48_000, "stereo"),
        ("wav", "pcm_f64le", 16_000, "mono"),
        ("wav", "pcm_mulaw", 8000, "mono"),
        ("flac", "flac", 22_050, "stereo"),
        ("mp3", "libmp3lame", 44_100, "stereo"),
        ("ogg", "libopus", 48_000, "mono"),
        ("webm", "libopus", 48_000, "stereo"),
        ("ipod", "aac", 32_000, "stereo"),
        ("ipod", "aac", 48_000, "7.1"),
        ("flac", "flac", 48_000, "7.1"),
        ("adts", "aac", 48_000, "mono"),
        ("aiff", "pcm_s16be", 11_025, "mono"),
        ("caf", "pcm_f32le", 192_000, "mono"),
        ("amr", "libopencore_amrnb", 8000, "mono"),
    ],
)
def test_any_container_codec_rate_and_channels(container: str, codec: str, rate: int, layout: str) -> None:
    audio = read(encode(tone(3.0, rate=rate), container, codec, rate, layout))
    assert audio.samples.dtype == np.float32 and audio.samples.ndim == 1 and audio.samples.flags.c_contiguous
    assert audio.duration_s == pytest.approx(3.0, abs=0.06) and audio.duration_s == len(audio.samples) / RATE
    assert audio.sample_rate == rate
    assert loudest_hz(audio) == pytest.approx(440, abs=0.5)
    assert float(np.sqrt(np.mean(audio.samples**2))) == pytest.approx(0.212, abs=0.035)


def test_resampling_is_that_of_soxr_at_once() -> None:
    import soxr

    sound = np.random.default_rng(1).normal(0, 0.1, 5 * 44_100).astype(np.float32)
    expected = soxr.resample(sound, 44_100, RATE, quality="HQ")
    audio = read(wav_float(sound, 44_100))
    assert len(audio.samples) == len(expected)
    assert float(np.abs(audio.samples - expected).max()) < 1e-5


def test_channels_are_averaged_and_peaks_stay_within_one() -> None:
    both = np.stack([tone(0.5), -tone(0.5)], axis=1)
    assert float(np.abs(read(wav(both)).samples).max()) < 1e-4
    assert float(np.abs(read(wav_float(tone(0.5, level=3.0))).samples).max()) == 1.0


def test_bare_samples_need_their_rate() -> None:
    sound = tone(1.0, rate=8000)
    audio = read(pcm16(sound), sample_rate=8000)
    assert audio.duration_s == 1.0 and loudest_hz(audio) == pytest.approx(440, abs=1)
    with pytest.raises(AudioError):
        read(pcm16(sound))
    with pytest.raises(AudioError, match="odd"):
        read(pcm16(sound) + b"x", sample_rate=8000)
    for rate in (0, -1, 999, 10**9):
        with pytest.raises(AudioError, match="sample_rate"):
            read(pcm16(sound), sample_rate=rate)


def test_a_file_with_a_rate_beside_it_is_still_a_file() -> None:
    assert read(wav(tone(1.0)), sample_rate=8000).duration_s == 1.0


def test_base64_with_and_without_a_head() -> None:
    text = base64.b64encode(wav(tone(1.0))).decode()
    folded = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    for one in (text, folded, f"data:audio/wav;base64,{text}"):
        assert read(Encoded(one)).duration_s == 1.0
    for bad in ("%%%", text[:-3], "é"):
        with pytest.raises(AudioError, match="base64"):
            read(Encoded(bad))


def test_long_base64_is_read_in_slices() -> None:
    data = wav(tone(120.0))
    text = base64.b64encode(data).decode()
    folded = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    assert len(text) > 3 << 20
    for one in (text, folded, f"data:audio/wav;base64,{folded}\n"):
        assert read(Encoded(one)).duration_s == 120.0
    padded = base64.b64encode(data[: (1 << 20) // 4 * 3 - 1]).decode()
    assert len(padded) == 1 << 20 and padded.endswith("=")
    for bad in (padded + text, text[:-5], text + "A", text[: 1 << 20] + "%" + text[1 << 20 :]):
        with pytest.raises(AudioError, match="base64"):
            read(Encoded(bad))


def test_an_endless_header_announces_nothing() -> None:
    for length in (0xFFFFFFFF, 0x7FFFF000):
        data = bytearray(wav(tone(1.0)))
        data[40:44] = length.to_bytes(4, "little")
        assert read(bytes(data)).duration_s == pytest.approx(1.0)


def test_too_long_is_refused_whatever_says_so() -> None:
    for data in (
        wav(tone(3.0)),
        encode(tone(3.0), "mp3", "libmp3lame", RATE),
        encode(tone(3.0), "webm", "libopus", 48_000),
    ):
        with pytest.raises(AudioTooLongError, match="SIDECAR_MAX_AUDIO_S"):
            read(data, max_audio_s=0.9)
    with pytest.raises(AudioTooLongError):
        read(pcm16(tone(3.0)), sample_rate=RATE, max_audio_s=2)


def test_two_hundred_broken_inputs_are_named_and_open_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(tone(1.0)))
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        inputs = list(broken(f"http://127.0.0.1:{trap.getsockname()[1]}/x.wav", secret))
        assert len(inputs) >= 200 and len({name for name, _ in inputs}) == len(inputs)
        for name, data in inputs:
            try:
                audio = read(data)
            except InputError as error:
                assert 400 <= STATUS[error.code] < 500, name
                assert len(error.message) > 20 and str(tmp_path) not in error.message, name
            else:
                raise AssertionError(f"{name}: decoded to {audio.duration_s} s")
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_a_lying_header_allocates_nothing() -> None:
    code = """
import io, resource, sys, threading
from sidecar.errors import InputError
from sidecar.runner.adapters.ffmpeg import decode
from sidecar.server.pcm import decode_wav, find_wav
from tests.broken import _wrong_headers
from tests.sound import tone, wav

def read(data):
    found = find_wav(io.BytesIO(data))
    if found:
        return decode_wav(io.BytesIO(data), found, 4000.0, threading.Event())
    return list(decode(io.BytesIO(data), 4000.0))

read(wav(tone(1.0, rate=44_100), 44_100))
list(decode(io.BytesIO(wav(tone(1.0, rate=44_100), 44_100)), 3600.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in _wrong_headers():
    try:
        read(data)
    except InputError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # KiB


def test_damaged_bits_are_an_answer_and_no_crash() -> None:
    chance = np.random.default_rng(3)
    codecs = {
        "wav": "pcm_s16le",
        "flac": "flac",
        "mp3": "libmp3lame",
        "ogg": "libopus",
        "ipod": "aac",
        "webm": "libopus",
    }
    for container, codec in codecs.items():
        whole = np.frombuffer(encode(tone(1.0, rate=48_000), container, codec, 48_000), np.uint8)
        for _ in range(20):
            data = whole.copy()
            at = chance.integers(0, len(data), 20)
            data[at] ^= chance.integers(1, 256, 20).astype(np.uint8)
            with contextlib.suppress(InputError):
                assert read(data.tobytes()).duration_s < 3600


# Paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "good.wav").write_bytes(wav(tone(1.0)))
    (tmp_path / "outside.wav").write_bytes(wav(tone(1.0)))
    return inside


def refused(path: str | Path, folder: Path) -> str:
    with pytest.raises(AudioNotFoundError, match="Audio file not found: ") as caught:
        read(LocalFile(str(path)), audio_folders=str(folder))
    return caught.value.message


def test_a_path_inside_is_read(folder: Path) -> None:
    for path in (folder / "good.wav", folder / ".." / "inside" / "good.wav", f"{folder}//good.wav"):
        assert read(LocalFile(str(path)), audio_folders=f"/nonexistent,{folder}").duration_s == 1.0


def test_bare_samples_without_their_rate_are_told_what_they_lack() -> None:
    with pytest.raises(AudioError, match="bare PCM16 needs its `sample_rate`"):
        read(pcm16(tone(1.0)))


def test_a_path_may_lead_to_bare_samples(folder: Path) -> None:
    (folder / "bare.pcm").write_bytes(pcm16(tone(2.0, rate=8000)))
    path = str(folder / "bare.pcm")
    audio = read(LocalFile(path, 8000), audio_folders=str(folder))
    assert audio.duration_s == 2.0 and loudest_hz(audio) == pytest.approx(440, abs=0.5)
    with open(path, "r+b") as file:
        file.truncate(1 << 40)  # a hole: reading it would take all memory
    with pytest.raises(AudioTooLongError):
        read(LocalFile(path, 8000), audio_folders=str(folder))
    assert source_of(json.dumps({"audio_path": path, "sample_rate": 8000}).encode(), "")[0] == LocalFile(path, 8000)


def test_links_are_resolved_before_the_folder_is_checked(folder: Path) -> None:
    (folder / "in.wav").symlink_to(folder / "good.wav")
    (folder / "out.wav").symlink_to(folder.parent / "outside.wav")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    assert read(LocalFile(str(folder / "in.wav")), audio_folders=str(folder)).duration_s == 1.0
    for path in ("out.wav", "up/outside.wav", "../outside.wav", "up/inside/../outside.wav"):
        told = f"(only files inside {folder} are read: set SIDECAR_AUDIO_FOLDERS, or send the audio itself)"
        assert refused(folder / path, folder).endswith(told)
    refused(folder / "loop.wav", folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    missing = folder / "missing.wav"
    assert refused(missing, folder) == f"Audio file not found: {missing}"
    assert STATUS["audio_not_found"] == 400


def test_outside_nobody_learns_whether_a_file_exists(folder: Path) -> None:
    there, not_there = folder.parent / "outside.wav", folder.parent / "nothing.wav"
    assert refused(there, folder).replace("outside.wav", "") == refused(not_there, folder).replace("nothing.wav", "")


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/environ", "/dev/stdin", "/dev/zero", "relative.wav", "", "file:///etc/passwd", "concat:/etc/passwd",
        "http://[::1]/x.wav", "//server/share/x.wav", "\\\\server\\share\\x.wav", "\\\\?\\C:\\x.wav", "/tmp/a\0b.wav",
        "/" + "x" * 5000,
    ],
)  # fmt: skip
def test_other_paths_are_refused(path: str, folder: Path) -> None:
    refused(path, folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_fifos_devices_and_folders_are_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe.wav")
    assert "no regular file" in refused(folder / "pipe.wav", folder)
    assert refused(folder, folder)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s"))
    refused(folder / "s", folder)
    server.close()
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        with pytest.raises(AudioNotFoundError):
            read(LocalFile(device), audio_folders="/")


def test_by_default_the_temporary_folder_and_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    settings = Settings.load(home=tmp_path / "home")
    assert settings.audio_dirs == (tmp_path / "tmp", tmp_path / "home")


# Requests


def source_of(body: bytes, content_type: str) -> tuple[AudioSource, dict[str, Any]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", content_type.encode())]}
    return asyncio.run(audio_source(Request(scope, receive)))


def form(*parts: tuple[str, str | bytes]) -> tuple[bytes, str]:
    """A multipart body; bytes are a file."""
    body = b""
    for name, value in parts:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            body += f'{head}; filename="x.wav"\r\nContent-Type: audio/wav\r\n\r\n'.encode() + value + b"\r\n"
        else:
            body += f"{head}\r\n\r\n{value}\r\n".encode()
    return body + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_multipart_brings_file_and_fields() -> None:
    source, options = source_of(
        *form(("file", wav(tone(1.0))), ("language", "en"), ("g[]", "word"), ("g[]", "segment"))
    )
    assert options == {"language": "en", "g[]": ["word", "segment"]}
    assert read(source).duration_s == 1.0
    assert isinstance(source, Upload) and source.file.closed


def test_a_large_upload_waits_on_disk() -> None:
    source, _ = source_of(*form(("file", wav(tone(60.0)))))
    assert read(source).duration_s == 60.0


def test_json_brings_path_or_base64() -> None:
    assert source_of(b'{"audio_path": "/a.wav", "language": "en"}', "application/json") == (
        LocalFile("/a.wav"),
        {"language": "en"},
    )
    assert source_of(b'{"audio": "AAAA", "sample_rate": 8000}', "") == (Encoded("AAAA", 8000), {})


def test_long_base64_is_not_parsed_but_taken_from_the_body_and_the_body_let_go() -> None:
    text = base64.b64encode(wav(tone(60.0))).decode()
    told = r'a \\"quoted\\" path C:\\'
    body = bytearray(json.dumps({"prompt": told, "audio": text, "more": [told, 1]}).encode())
    fields = parse(body, "audio")
    assert fields == {"prompt": told, "audio": text.encode(), "more": [told, 1]}
    assert isinstance(fields["audio"], memoryview)
    assert read(Encoded(fields["audio"])).duration_s == 60.0
    assert len(body) < 2 << 20, "its memory is given back before the model has heard all of it"


@pytest.mark.parametrize(
    "make",
    [
        lambda text: {"audio": "AAAA", "prompt": text},
        lambda text: {"audio": {"audio": text}},
        lambda text: [text],
        lambda text: text,
        lambda text: {"audio": text + "\n"},
        lambda text: {"audio": text, "\\" * 99: 1},
        lambda text: {"\\" * 99: 1, "audio": text},
        lambda text: {**{str(number): "" for number in range(300)}, "audio": text},
        lambda text: {"prompt": text, "audio": text},
    ],
    ids=range(9),
)
def test_a_long_body_says_what_it_would_say_as_json(make: Callable[[str], Any]) -> None:
    value = make("A" * (3 << 20))
    body = bytearray(json.dumps(value).encode())
    parsed = parse(body, "audio")
    if isinstance(parsed, dict) and isinstance(parsed.get("audio"), memoryview):
        parsed["audio"] = bytes(parsed["audio"]).decode()
    assert parsed == value
    for broken_body in (body[:-1], body[: len(body) // 2], body + b'"'):
        with pytest.raises(msgspec.DecodeError):
            parse(broken_body, "audio")


def test_a_long_recording_is_freed_by_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[tuple[int, int]] = []

    def spy(buffer: bytearray) -> None:
        before = len(buffer)
        free(buffer)
        assert threading.current_thread() is not threading.main_thread()
        freed.append((before, len(buffer)))

    monkeypatch.setattr(samples, "free", spy)
    audio = Audio.of(Sound(64 << 20), RATE)
    view = memoryview(audio.samples)
    del audio
    assert not freed and len(view) == 16 << 20, "somebody still looks at it"
    del view
    until(lambda: freed, "it is freed")
    assert freed[0][0] == 64 << 20 and freed[0][1] <= 1 << 20


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: (b"{", "application/json"), BadRequestError),
        (lambda: (b"[" * 100_000, "application/json"), BadRequestError),
        (lambda: (b"", "application/json"), BadRequestError),
        (lambda: (b'{"audio": "\xff"}', "application/json"), BadRequestError),
        (lambda: (b"[]", "application/json"), InputError),
        (lambda: (b"{}", "application/json"), InputError),
        (lambda: (b'{"audio": 7}', "application/json"), InputError),
        (lambda: (b'{"audio_path": ["/a"]}', "application/json"), InputError),
        (lambda: (b'{"audio": "AA", "audio_path": "/a"}', "application/json"), InputError),
        (lambda: (b'{"audio": "AA", "sample_rate": "x"}', "application/json"), InputError),
        (lambda: (b'{"audio": "AA", "sample_rate": []}', "application/json"), InputError),
        (lambda: form(("language", "en")), InputError),
        (lambda: form(("file", "just text")), InputError),
        (lambda: form(("file", b"a"), ("file", b"b")), InputError),
        (lambda: (b"--b\r\nnonsense", "multipart/form-data; boundary=b"), InputError),
        (lambda: (b"x", "multipart/form-data"), BadRequestError),
    ],
)  # fmt: skip
def test_bad_bodies_are_named(make: Callable[[], tuple[bytes, str]], error: type[Exception]) -> None:
    with pytest.raises(error):
        source_of(*make())
