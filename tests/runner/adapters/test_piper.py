"""Piper voices, in the real files' shape, through the adapter; what was said is read from the audio's tones."""

import json
from pathlib import Path

import numpy as np
import pytest

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.errors import InputError, ModelLoadError, NoTimingsError
from sidecar.runner.adapters.piper import PiperAdapter
from tests.voices import (
    PIPER_HOP,
    PIPER_RATE,
    PIPER_SILENT,
    heard,
    load_voice,
    piper_files,
    piper_ids,
    said,
    say,
    without_durations,
)

SYMBOLS = {index: symbol for symbol, (index,) in piper_ids().items()}


@pytest.fixture
def voice(tmp_path: Path) -> PiperAdapter:
    return load_voice("piper", tmp_path, piper_files())


def symbols(speech: Speech) -> str:
    return "".join(SYMBOLS[index] for index in said(speech.audio, PIPER_HOP))


def test_it_says_the_phonemes_with_their_punctuation(voice: PiperAdapter) -> None:
    # Spaces are silent here as Piper's ids go: 3 is the highest silent one.
    assert symbols(say(voice, "Hello, Dr. Smith!")) == "həlˈoʊ,dˈɑːktɚsmˈɪθ!"
    assert symbols(say(voice, "No end")).endswith("ɛnd."), "as in training, a sentence ends in a stop"
    assert symbols(say(voice, "Well… maybe — yes?")) == "wˈɛl.mˈeɪbiː,jˈɛs?"
    assert symbols(say(voice, "日本")), "what English cannot say is named"


def test_times_are_those_of_the_audio(voice: PiperAdapter) -> None:
    speech = say(voice, "Hello there, Peter.")
    frames = heard(speech.audio, PIPER_HOP)
    frame_s = PIPER_HOP / PIPER_RATE
    for span in speech.phonemes:
        middle = frames[round(span.start_s / frame_s) : round(span.end_s / frame_s)]
        letters = {SYMBOLS[index] for index in middle if index != -1}
        assert letters == set(span.text), span
    assert [span.text for span in speech.words] == ["Hello", "there", "Peter"]
    for word, (first, last) in zip(speech.words, (("h", "ʊ"), ("ð", "ɹ"), ("p", "ɚ")), strict=True):
        inside = [index for index in frames[round(word.start_s / frame_s) : round(word.end_s / frame_s)] if index > -1]
        assert (SYMBOLS[inside[0]], SYMBOLS[inside[-1]]) == (first, last)


@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0, 4.0])
def test_speed_and_times_go_together(voice: PiperAdapter, speed: float) -> None:
    slowest, speech = say(voice, "Hello there, Peter.", speed=0.25), say(voice, "Hello there, Peter.", speed=speed)
    # Durations are whole frames, rounded up: of these here, which are one to five, much is rounding at high speed.
    factor = len(slowest.audio) / len(speech.audio)
    assert 0.6 * speed / 0.25 < factor <= 1.1 * speed / 0.25
    assert speech.words[-1].end_s <= len(speech.audio) / PIPER_RATE + 1e-6
    assert speech.words[-1].start_s == pytest.approx(slowest.words[-1].start_s / factor, rel=0.1)


def test_pitch_moves_the_tones_and_not_the_length(voice: PiperAdapter) -> None:
    plain, high = say(voice, "Aaa", speed=0.45), say(voice, "Aaa", speed=0.45, pitch=1.08)
    assert len(high.audio) == pytest.approx(len(plain.audio), rel=0.15)
    spectra = [np.abs(np.fft.rfft(speech.audio.astype(float), 65536)).argmax() for speech in (plain, high)]
    assert spectra[1] / spectra[0] == pytest.approx(1.08, rel=0.01)


def test_a_pause_is_silence_at_the_end(voice: PiperAdapter) -> None:
    with_pause, without = say(voice, "Yes.", pause=True), say(voice, "Yes.")
    extra = with_pause.audio[len(without.audio) :]
    assert len(extra) == pytest.approx(0.2 * PIPER_RATE, abs=2) and not extra.any()


@pytest.mark.parametrize("text", ["...", "?!", "—", "(\u201c)", "\u200d", "- -"])
def test_punctuation_alone_is_a_pause(voice: PiperAdapter, text: str) -> None:
    """It would be a noise, raised to full loudness."""
    for pause in (True, False):
        speech = say(voice, text, pause=pause)
        assert len(speech.audio) == pytest.approx(0.2 * PIPER_RATE, abs=2) and not speech.audio.any()
        assert not speech.words and not speech.phonemes


def test_every_sentence_is_as_loud_as_the_format_allows(voice: PiperAdapter) -> None:
    assert np.abs(say(voice, "Yes.").audio.astype(int)).max() == 32767
    assert np.abs(say(voice, "Yes.", volume=0.5).audio.astype(int)).max() == pytest.approx(16384, abs=2)


def test_speakers_are_voices(tmp_path: Path) -> None:
    adapter = load_voice("piper", tmp_path, piper_files(("anna", "bert")))
    anna, bert = (
        said(say(adapter, "Yes.", "anna").audio, PIPER_HOP),
        said(say(adapter, "Yes.", "bert").audio, PIPER_HOP),
    )
    assert [index - 60 for index in bert] == anna
    assert said(say(adapter, "Yes.", "en_US-tiny-medium#bert").audio, PIPER_HOP) == bert
    assert said(say(adapter, "Yes.").audio, PIPER_HOP) == anna, "the first one without a name"
    with pytest.raises(InputError, match="carl"):
        say(adapter, "Yes.", "en_US-tiny-medium#carl")


def test_a_voice_may_read_letters(tmp_path: Path) -> None:
    adapter = load_voice("piper", tmp_path, piper_files(phoneme_type="text"))
    speech = say(adapter, "abc de")
    assert symbols(speech) == "abcde" and [span.text for span in speech.words] == ["abc", "de"]


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="pinyin"):
        load_voice("piper", tmp_path / "a", piper_files(phoneme_type="pinyin"))
    with pytest.raises(ModelLoadError, match="onnx"):
        load_voice("piper", tmp_path / "b", {"config.json": b"{}"})
    graph_alone = {path: content for path, content in piper_files().items() if path.endswith(".onnx")}
    with pytest.raises(FileNotFoundError, match=r"\.onnx\.json"):
        load_voice("piper", tmp_path / "c", graph_alone)


def test_a_graph_without_durations_speaks_and_says_that_it_has_no_times(tmp_path: Path) -> None:
    adapter = load_voice("piper", tmp_path, without_durations(piper_files()))
    (speech,) = adapter.speak("Yes.", None, Delivery(), pause=False, timings=False)
    assert len(speech.audio) > 1000 and not speech.words
    with pytest.raises(NoTimingsError, match="espeak-ng does"):
        list(adapter.speak("Yes.", None, Delivery(), pause=False, timings=True))


def test_the_configuration_is_the_real_one() -> None:
    config = json.loads(next(content for path, content in piper_files().items() if path.endswith(".json")))
    assert {"audio", "espeak", "inference", "phoneme_id_map", "num_speakers", "speaker_id_map"} <= set(config)
    assert all(config["phoneme_id_map"][symbol] == [index] for index, symbol in enumerate("_^$ "))
    assert PIPER_SILENT == 3
