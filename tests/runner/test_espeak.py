"""The eSpeak NG library: what it says, when it says it, and what it must never obey."""

import json
import shutil
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import pytest

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.errors import InputError
from sidecar.runner.adapters.espeak import EspeakAdapter
from sidecar.runner.espeak import library
from tests.product import ROOT

SENTENCE = "Peter, stop that; we keep a cup of tea."


@pytest.fixture(scope="module")
def speaker() -> EspeakAdapter:
    adapter = EspeakAdapter(read_spec(BUILT_IN / "espeak-ng.toml"), 1, "auto")
    adapter.load(lambda *_: None)
    return adapter


def say(speaker: EspeakAdapter, text: str, voice: str | None = None, pause: bool = False, **delivery: float) -> Speech:
    (speech,) = speaker.speak(text, voice, Delivery(**delivery), pause=pause, timings=True)
    return speech


def energy(audio: Any, start_s: float, end_s: float, rate: int = 22_050) -> float:
    part = audio[int(start_s * rate) : int(end_s * rate)].astype(np.float64)
    return float(np.sqrt((part**2).mean())) if len(part) else 0.0


def pitch_hz(audio: Any, rate: int = 22_050) -> float:
    """Median fundamental of the voiced frames, by autocorrelation."""
    found = []
    for start in range(0, len(audio) - 2048, 1024):
        frame = audio[start : start + 2048].astype(np.float64)
        if np.sqrt((frame**2).mean()) < 800:
            continue
        frame -= frame.mean()
        correlation = np.correlate(frame, frame, "full")[2047:]
        low, high = rate // 350, rate // 60
        lag = low + int(np.argmax(correlation[low:high]))
        if correlation[lag] > 0.5 * correlation[0]:
            found.append(rate / lag)
    return float(np.median(found))


def test_phoneme_times_agree_with_the_signal(speaker: EspeakAdapter) -> None:
    """Vowels are loud, the closures of plosives and the pauses between are not."""
    speech = say(speaker, SENTENCE)
    audio, phonemes = speech.audio, speech.phonemes
    vowels = [span for span in phonemes if any(letter in "ɑaɛəɚɐiæʌʊɪɔu" for letter in span.text)]
    loud = np.median([energy(audio, span.start_s, span.end_s) for span in vowels])
    assert len(vowels) >= 9 and loud > 2000
    assert min(energy(audio, span.start_s, span.end_s) for span in vowels if "ˈ" in span.text) > loud / 3
    gaps = [
        (before.end_s, after.start_s) for before, after in pairwise(phonemes) if after.start_s - before.end_s > 0.03
    ]
    assert len(gaps) == 2, "the comma and the semicolon"
    for start_s, end_s in gaps:
        assert energy(audio, start_s + 0.06, end_s - 0.01) < loud / 20
    # A plosive's closure: the quietest 10 ms of every [p] and [t] inside the sentence.
    for span in phonemes[1:-1]:
        if span.text in ("p", "t", "k"):
            steps = np.arange(span.start_s - 0.02, span.end_s, 0.005)
            assert min(energy(audio, at, at + 0.01) for at in steps) < loud / 8, span


def test_times_are_in_order_and_inside_of_the_audio(speaker: EspeakAdapter) -> None:
    for text in (SENTENCE, "It's 1,234.5 km to A.B.C. — isn't it?", "Ein Satz.", "日本語です。", "😀 a-b c/d"):
        for speed in (0.3, 1.0, 3.5):
            speech = say(speaker, text, speed=speed)
            length_s = len(speech.audio) / speaker.sample_rate
            for spans in (speech.words, speech.phonemes):
                assert spans and spans[0].start_s >= 0 and spans[-1].end_s <= length_s + 1e-6
                assert all(span.start_s < span.end_s for span in spans)
                assert all(one.end_s <= other.start_s + 1e-6 for one, other in pairwise(spans))


MIXED = "Hello 123, $3.50 and 你好 мир नमस्ते こんにちは 😀 at 10:05. No. 5 - 'quoted' (1984)!"


@pytest.mark.parametrize("voice", ["en-us", "vi", "ml", "ga", "ky", "sjn", "ca", "yue", "qya", "cmn"])
def test_mixed_languages_have_times_too(speaker: EspeakAdapter, voice: str) -> None:
    """The library reports switches of language as if they were sounds, and sounds that last no time."""
    speech = say(speaker, MIXED, voice)
    for spans in (speech.words, speech.phonemes):
        assert len(spans) > 8 and all(span.start_s < span.end_s for span in spans)
        assert all(one.end_s <= other.start_s + 1e-6 for one, other in pairwise(spans))
    assert not [span.text for span in speech.phonemes if "(" in span.text]


def test_words_are_those_of_the_text(speaker: EspeakAdapter) -> None:
    words = [span.text for span in say(speaker, 'He paid "$3.50" for two cups of the coffee, Café naïve!').words]
    assert words == ["He", "paid", "$3.50", "for", "two", "cups", "of", "the", "coffee", "Café", "naïve"]


def test_english_figures_are_said_as_people_say_them_and_are_words_as_written(speaker: EspeakAdapter) -> None:
    text = "In 1984 it took $1.5 billion at 10:05 and $3.50 of 1984"
    spelt = (
        "In nineteen eighty four it took one point five billion dollars at ten oh five"
        " and three dollars and fifty cents of nineteen eighty four"
    )

    def sounds(text: str, voice: str) -> str:
        return "".join(span.text for span in say(speaker, text, voice).phonemes).replace("ˈ", "")

    assert sounds(text, "en-gb+f2") == sounds(spelt, "en-gb+f2")
    words = say(speaker, text, "en-gb+f2").words
    assert [word.text for word in words] == text.split()
    assert words[-1].start_s == pytest.approx(say(speaker, spelt, "en-gb+f2").words[-3].start_s, abs=0.1)
    assert sounds("1984", "de").startswith("aɪntaʊzənt"), "other languages have their own rules"


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.5, 2.0, 4.0])
def test_speed_is_what_was_asked_for(speaker: EspeakAdapter, speed: float) -> None:
    text = "Hello there, the quick brown fox jumps over the lazy dog."
    plain, fast = say(speaker, text), say(speaker, text, speed=speed)
    assert len(plain.audio) / len(fast.audio) == pytest.approx(speed, rel=0.16)
    # A second of speech has few frames, and the pitch flutters with all that was said before.
    pitches = [[pitch_hz(say(speaker, text, speed=each).audio) for _ in range(6)] for each in (1.0, speed)]
    assert np.mean(pitches[1]) == pytest.approx(np.mean(pitches[0]), rel=0.12), "the pitch stays"
    assert [span.text for span in fast.words] == [span.text for span in plain.words]


def test_pitch_and_volume(speaker: EspeakAdapter) -> None:
    # eSpeak's pitch flutters, and how depends on all that was said before: 2 % from one time to the next.
    low, normal, high = (
        np.mean([pitch_hz(say(speaker, SENTENCE, pitch=pitch).audio) for _ in range(6)]) for pitch in (0.9, 1.0, 1.1)
    )
    assert high / normal == pytest.approx(1.1, abs=0.05)
    assert low / normal == pytest.approx(0.9, abs=0.05)
    plain = say(speaker, SENTENCE).audio
    quiet = say(speaker, SENTENCE, volume=0.5).audio
    assert energy(quiet, 0, 9) / energy(plain, 0, 9) == pytest.approx(0.5, abs=0.01)
    loud = say(speaker, SENTENCE, volume=9.0).audio
    assert energy(plain, 0, 9) < energy(loud, 0, 9) and np.abs(loud.astype(int)).max() <= 32767


def test_voices_differ_and_unknown_ones_are_refused(speaker: EspeakAdapter) -> None:
    man, woman = say(speaker, SENTENCE, "en-us"), say(speaker, SENTENCE, "en-us+f3")
    assert pitch_hz(woman.audio) > 1.2 * pitch_hz(man.audio)
    german = [span.text for span in say(speaker, "Guten Tag", "de").phonemes]
    assert german != [span.text for span in say(speaker, "Guten Tag", "en-us").phonemes]
    for unknown in ("klingon", "en-us+nobody", "", "../../etc/passwd"):
        with pytest.raises(InputError, match="no voice"):
            speaker._library.speak("x", unknown)
    assert len(say(speaker, SENTENCE, "fr-fr").audio) > 10_000, "by its language, as other programs name it"


def test_a_pause_follows_if_another_sentence_does(speaker: EspeakAdapter) -> None:
    assert 0.15 < (len(say(speaker, "Yes.", pause=True).audio) - len(say(speaker, "Yes.").audio)) / 22_050 < 0.6


def test_markup_is_read_out_and_never_obeyed(speaker: EspeakAdapter, tmp_path: Path) -> None:
    plain = len(say(speaker, "a b").audio)
    for markup in (
        'a <break time="20s"/> b',
        f'a <audio src="{tmp_path}/x.wav"/> b',
        "<speak><prosody rate='x-slow'>a b</prosody></speak>",
        "a [[_:_:_:_:_:_:_:_:]] b",
        "a &#60;break time='20s'/&#62; b",
    ):
        heard = say(speaker, markup)
        assert plain < len(heard.audio) < 12 * 22_050, markup
        assert len(heard.phonemes) > 10, "the tags are spelled"


def test_odd_texts_do_no_harm(speaker: EspeakAdapter) -> None:
    for text in (
        "...",
        "!",
        "\x00abc",
        "a\x00b",
        "\ud800",
        "x" * 3000,
        "1" * 400,
        "\u0301" * 50,
        "🏳️‍🌈" * 20,
        "ﷺ",
        "\u202eabc",
    ):
        say(speaker, text)


# Each ended the process: found by a fuzzer, in some voices only, or only after other texts.
DEADLY = (
    "antidis" * 40,
    "over" * 100,
    "'s" * 75,
    "radio" * 30 + "bio" * 30,
    "pre" * 60 + "ion" * 60,
    "---a",
    "hi. ---a",
    "!---a",
    ".-a.-aaaa",
    "---extra--extra",
    "नमस्ते" * 60,
    "მშვიდობა" * 40,
)


@pytest.mark.parametrize("voice", ["en-us", "en-gb", "da", "vi", "de", "hi", "ka"])
def test_words_without_end_and_runs_of_hyphens_do_no_harm(voice: str) -> None:
    # In a process of its own, which a fault would end.
    code = (
        "import sys, json; from sidecar.runner.espeak import library\n"
        "for text in json.loads(sys.stdin.read()):\n"
        "    assert len(library().speak(text, sys.argv[1]).audio) and library().phonemes(text, sys.argv[1])"
    )
    command = [sys.executable, "-c", code, voice]
    done = subprocess.run(command, input=json.dumps(DEADLY), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_times_of_words_that_were_divided_belong_to_the_words_as_written(speaker: EspeakAdapter) -> None:
    long = "anti" * 30
    words = say(speaker, f"See {long} and {long} -- then ---go").words
    assert [word.text for word in words] == ["See", long, "and", long, "then", "---go"]
    assert all(one.end_s <= other.start_s + 1e-6 for one, other in pairwise(words))


def test_phonemes_are_ipa_with_stress() -> None:
    assert library().phonemes("Hello there", "en-us") == "həlˈoʊ ðˈɛɹ"
    assert library().phonemes("now", "en-us", "^") == "nˈa^ʊ"
    assert library().phonemes("le weekend", "fr") == "lə- wiːkˈɛnd", "no marks of a change of language"
    assert library().phonemes("", "en-us") == ""


def test_threads_do_not_mix_their_voices(speaker: EspeakAdapter) -> None:
    def heard(voice: str) -> list[str]:
        return [span.text for span in say(speaker, SENTENCE, voice).phonemes]

    expected = {voice: heard(voice) for voice in ("en-us", "de", "fr", "es")}
    assert len(set(map(tuple, expected.values()))) == 4
    wrong = []

    def run(voice: str) -> None:
        wrong.extend(voice for _ in range(8) if heard(voice) != expected[voice])

    threads = [threading.Thread(target=run, args=(voice,)) for voice in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_its_data_may_lie_deep(tmp_path: Path) -> None:
    """The library has room for a path of 160 bytes, and says nothing when it cuts one off."""
    deep = tmp_path / ("ü" * 80) / ("y" * 80)
    package = deep / "espeakng_loader"
    shutil.copytree(Path(espeakng_loader.__file__).parent, package)
    code = (
        "import espeakng_loader; from sidecar.runner.espeak import library\n"
        "print(espeakng_loader.__file__, len(library().speak('Hello', 'de').audio))"
    )
    environment = {"PYTHONPATH": f"{deep}:{ROOT}", "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    path, samples = done.stdout.rsplit(" ", 1)
    assert path.startswith(str(deep)) and int(samples) > 5000
