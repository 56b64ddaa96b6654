"""Every format decodes to what went in, and its bytes leave as they are made."""

import io
import wave
from typing import Any

import av
import numpy as np
import pytest
import soxr

from sidecar.runner.espeak import library
from sidecar.server.encoding import MEDIA_TYPES, encoded_rate, make_encoder, wav_header

RATE = 22_050
# Samples (at the decoder's rate) that a codec needs ahead, and that no header can tell a decoder of a stream about:
# LAME's delay and MDCT's, AAC's priming frame. Opus tells its own.
DELAYS = {"wav": 0, "flac": 0, "opus": 0, "mp3": 1105, "aac": 1024}
FRAMES = {"wav": 0, "flac": 0, "opus": 960, "mp3": 1152, "aac": 1024}


@pytest.fixture(scope="module")
def sentences() -> list[Any]:
    texts = ("Hello there, this is the first sentence of some.", "And this one is the second.", "The end.")
    return [library().speak(text, "en-us", pause=True).audio for text in texts]


def decode(data: bytes) -> tuple[Any, int]:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray().astype(np.float64).reshape(-1) for frame in container.decode(audio=0)]
        return np.concatenate(frames), container.streams.audio[0].rate


def lag_and_likeness(heard: Any, said: Any) -> tuple[int, float]:
    """Where `said` begins in `heard`, and the correlation of the two there."""
    size = 1 << (len(heard) + len(said)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size)), size)
    lag = int(np.argmax(product[: size // 2]))
    part = heard[lag : lag + len(said)]
    return lag, float(np.corrcoef(part, said[: len(part)])[0, 1])


@pytest.mark.parametrize("format", DELAYS)
@pytest.mark.parametrize("rate", [22_050, 24_000, 16_000])
def test_what_is_decoded_is_what_was_said(sentences: list[Any], format: str, rate: int) -> None:
    said = soxr.resample(np.concatenate(sentences), RATE, rate)
    encoder = make_encoder(format, rate)
    parts = [encoder.feed(part.tobytes()) for part in np.array_split(said, 7)]
    heard, heard_rate = decode(b"".join([*parts, encoder.finish()]))
    expected = soxr.resample(said.astype(np.float64), rate, heard_rate)
    lag, likeness = lag_and_likeness(heard, expected)
    assert likeness > 0.98 and lag <= DELAYS[format] + 1
    # Whole frames: the delay before, and at most one frame of padding after.
    extra = len(heard) - len(expected)
    assert -1 <= extra <= DELAYS[format] + FRAMES[format] + 1
    if format in ("wav", "flac"):
        assert (heard == said).all()


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_bytes_leave_with_every_sentence(sentences: list[Any], format: str) -> None:
    encoder = make_encoder(format, RATE, 24_000 if format == "pcm" else None)
    sizes = [len(encoder.feed(sentence.tobytes())) for sentence in sentences]
    last = len(encoder.finish())
    assert all(sizes) and last < sum(sizes) / 10
    assert sizes[0] / sum(sizes) == pytest.approx(len(sentences[0]) / sum(map(len, sentences)), abs=0.1)


def test_pcm_is_resampled_without_seams(sentences: list[Any]) -> None:
    whole = np.concatenate(sentences)
    encoder = make_encoder("pcm", RATE, 24_000)
    parts = [encoder.feed(part.tobytes()) for part in np.array_split(whole, 23)]
    heard = np.frombuffer(b"".join([*parts, encoder.finish()]), "<i2").astype(np.float64)
    expected = soxr.resample(whole.astype(np.float64), RATE, 24_000)
    assert encoder.sample_rate == 24_000 and abs(len(heard) - len(expected)) <= 1
    size = min(len(heard), len(expected))
    assert np.abs(heard[:size] - expected[:size]).max() < 40


def test_a_wav_of_known_length_says_it(sentences: list[Any]) -> None:
    data = sentences[2].tobytes()
    encoder = make_encoder("wav", RATE)
    content = encoder.feed(data, last=True) + encoder.finish()
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (len(data) // 2, RATE, 1)
        assert file.readframes(10**9) == data
    assert content[:4] == b"RIFF" and int.from_bytes(content[4:8], "little") == len(content) - 8


def test_a_wav_of_unknown_length_can_be_read_to_its_end(sentences: list[Any]) -> None:
    data = b"".join(sentence.tobytes() for sentence in sentences)
    with wave.open(io.BytesIO(wav_header(RATE, None) + data)) as file:
        assert file.readframes(10**9) == data


@pytest.mark.parametrize(("rate", "expected"), [(16_000, 24_000), (22_050, 24_000), (24_000, 24_000), (44_100, 48_000)])
def test_opus_keeps_what_a_voice_has(rate: int, expected: int) -> None:
    assert encoded_rate("opus", rate) == expected
    tone_hz = 0.4 * rate
    tone = (10_000 * np.sin(2 * np.pi * tone_hz * np.arange(rate) / rate)).astype("<i2")
    encoder = make_encoder("opus", rate)
    content = encoder.feed(tone.tobytes()) + encoder.finish()
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.audio[0].codec_context.extradata[12:16] == expected.to_bytes(4, "little")
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(np.float64)
    assert np.abs(np.fft.rfft(heard)).argmax() * 48_000 / len(heard) == pytest.approx(tone_hz, rel=0.01)
    assert np.abs(heard).max() > 0.15
