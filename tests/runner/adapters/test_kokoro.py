"""Kokoro, in the real files' shape, through the adapter; what was said is read from the audio's tones."""

from pathlib import Path

import numpy as np
import pytest

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.adapters.kokoro import KokoroAdapter
from tests.voices import KOKORO_HOP, KOKORO_RATE, kokoro_files, kokoro_ids, load_voice, said, say

SYMBOLS = {index: symbol for symbol, index in kokoro_ids().items()}


@pytest.fixture
def kokoro(tmp_path: Path) -> KokoroAdapter:
    return load_voice("kokoro", tmp_path, kokoro_files())


def symbols(speech: Speech) -> str:
    """Trimming moves the frames: read from where the first tone begins."""
    first = int(np.flatnonzero(np.abs(speech.audio.astype(int)) > 100)[0])
    return "".join(SYMBOLS[index] for index in said(speech.audio[max(0, first - 1) :], KOKORO_HOP))


def loudness(speech: Speech) -> float:
    return float(np.abs(speech.audio.astype(int)).max()) / 32767


def test_it_says_its_own_alphabet(kokoro: KokoroAdapter) -> None:
    assert symbols(say(kokoro, "Hello now, Dr. Joy!")) == "həlˈOnˈWdˈɑktəɹʤˈY"
    assert "Q" in symbols(say(kokoro, "Go home.", "bf_emma")) and "Q" not in symbols(say(kokoro, "Go home."))


def test_times_are_those_of_the_audio(kokoro: KokoroAdapter) -> None:
    speech = say(kokoro, "Hello there, Peter.")
    assert [span.text for span in speech.words] == ["Hello", "there", "Peter"]
    assert [span.text for span in speech.phonemes][:4] == ["h", "ə", "l", "ˈoʊ"]
    signal = np.abs(speech.audio.astype(float))
    for span in speech.phonemes:
        inside = signal[int(span.start_s * KOKORO_RATE) + 20 : int(span.end_s * KOKORO_RATE) - 20]
        assert inside.max() > 5000, span
    for before, after in zip(speech.words, speech.words[1:], strict=False):
        between = signal[int(before.end_s * KOKORO_RATE) + 20 : int(after.start_s * KOKORO_RATE) - 20]
        assert len(between) > 500 and between.max() < 100
    assert speech.words[0].start_s == pytest.approx(0.025, abs=0.002), "the silence before is one frame here"


def test_the_style_is_that_of_the_voice_and_of_the_number_of_symbols(kokoro: KokoroAdapter) -> None:
    short, long = say(kokoro, "Hm"), say(kokoro, "Hm hm hm hm hm hm hm hm hm hm")
    count = len("həm") if len(symbols(short)) == 3 else len(symbols(short))
    assert loudness(short) == pytest.approx(0.5 * (1 - (count - 1) / 1000), abs=0.004)
    assert loudness(long) < loudness(short) - 0.005
    assert loudness(say(kokoro, "Hm", "am_adam")) == pytest.approx(loudness(short) / 2, abs=0.003)


def test_voices_can_be_blended(kokoro: KokoroAdapter) -> None:
    heart, adam = loudness(say(kokoro, "Hm")), loudness(say(kokoro, "Hm", "am_adam"))
    assert loudness(say(kokoro, "Hm", "af_heart+am_adam")) == pytest.approx((heart + adam) / 2, abs=0.003)
    blend = loudness(say(kokoro, "Hm", "af_heart(3)+am_adam(1)"))
    assert blend == pytest.approx((3 * heart + adam) / 4, abs=0.003)


@pytest.mark.parametrize("voice", ["af_nobody", "jf_alpha", "../config.json", "af_heart+af_nobody", "+", "a b"])
def test_voices_that_are_not_there_are_refused(kokoro: KokoroAdapter, voice: str) -> None:
    with pytest.raises(InputError, match="no voice"):
        say(kokoro, "x", voice)


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
def test_speed_within_and_beyond_what_the_model_does(kokoro: KokoroAdapter, speed: float) -> None:
    speech = say(kokoro, "Hello there, Peter.", speed=speed)
    plain = say(kokoro, "Hello there, Peter.")
    assert len(plain.audio) / len(speech.audio) == pytest.approx(speed, rel=0.25)
    assert speech.words[-1].end_s <= len(speech.audio) / KOKORO_RATE + 0.01


def test_more_symbols_than_the_model_takes_are_said_in_parts(kokoro: KokoroAdapter) -> None:
    parts = list(kokoro.speak(" ".join(["9876543210"] * 12), None, Delivery(), pause=True, timings=True))
    assert len(parts) == 3
    assert {span.text for part in parts for span in part.words} == {"9876543210"}
    silent = [int(np.flatnonzero(part.audio[::-1])[0]) / KOKORO_RATE for part in parts]
    assert silent[-1] > 0.2 > max(silent[:-1]), "only the last one pauses"


@pytest.mark.parametrize("text", ["…", "?!", "—", "\u200d"])
def test_punctuation_alone_is_a_pause(kokoro: KokoroAdapter, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kokoro, "_session", None)  # which would make a noise of it
    for pause in (True, False):
        (speech,) = kokoro.speak(text, None, Delivery(), pause=pause, timings=True)
        assert len(speech.audio) == pytest.approx(0.2 * KOKORO_RATE, abs=2) and not speech.audio.any()
        assert not speech.words


def test_a_graph_without_durations_speaks_and_says_that_it_has_no_times(tmp_path: Path) -> None:
    files = kokoro_files()
    without = {
        path: content.replace(b"/encoder/Clip_output_0", b"/encoder/Clip_output_9") for path, content in files.items()
    }
    adapter = load_voice("kokoro", tmp_path / "without", without)
    (speech,) = adapter.speak("Yes.", None, Delivery(), pause=False, timings=False)
    assert len(speech.audio) > 1000
    with pytest.raises(InputError, match="timings"):
        list(adapter.speak("Yes.", None, Delivery(), pause=False, timings=True))


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="onnx"):
        load_voice("kokoro", tmp_path / "a", {"tokenizer.json": b"{}"})
    with pytest.raises(InputError, match="af_heart"):
        load_voice("kokoro", tmp_path / "b", kokoro_files(am_adam=0.3))
