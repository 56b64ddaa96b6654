"""The embedded recogniser on real telephone speech, and what it makes of none."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.capabilities.asr import Segment, TranscribeOptions, joined, split_pieces
from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.errors import InputError
from sidecar.runner.adapters.pocketsphinx import PocketsphinxAdapter
from sidecar.runner.narrowband import is_narrowband, widen
from tests.prompts import load, plain, prompts
from tests.sound import RATE, tone

OPTIONS: TranscribeOptions = {
    "language": None,
    "task": "transcribe",
    "word_timestamps": True,
    "vad_filter": True,
    "initial_prompt": None,
    "hotwords": None,
    "temperature": None,
    "beam_size": 5,
}


@pytest.fixture(scope="module")
def adapter() -> PocketsphinxAdapter:
    made = PocketsphinxAdapter(read_spec(Path(BUILT_IN, "pocketsphinx-en-us.toml")), 1, "auto")
    made.load(lambda item, done, total, unit: None)
    return made


def segments(adapter: PocketsphinxAdapter, sound: Any, **options: Any) -> list[Segment]:
    head, found = split_pieces(list(adapter.transcribe(sound, {**OPTIONS, **options})))  # type: ignore[typeddict-item]
    assert head["language"] == "en" and head["duration_s"] == pytest.approx(len(sound) / RATE)
    return found


@pytest.mark.slow
def test_word_errors_and_honest_confidence_on_telephone_prompts(adapter: PocketsphinxAdapter) -> None:
    """Seen: 45 % word errors on 100 prompts, where the plain recogniser makes 64 %."""
    import jiwer

    chosen = prompts(25)
    sure: list[bool] = []
    unsure: list[bool] = []
    found = []
    for prompt in chosen:
        said = segments(adapter, load(prompt))
        found.append(plain(joined(said)))
        right = set(plain(prompt.text).split())
        for word in (word for segment in said for word in segment["words"]):
            (sure if word["probability"] > 0.8 else unsure).append(plain(word["word"]) in right)
    assert jiwer.wer([plain(prompt.text) for prompt in chosen], found) < 0.55
    assert np.mean(sure) > 0.75 > 0.6 > np.mean(unsure)


def test_words_lie_where_they_are_said(adapter: PocketsphinxAdapter) -> None:
    speech = load(prompts(100)[2])
    sound = np.concatenate([np.zeros(3 * RATE, np.float32), speech, np.zeros(3 * RATE, np.float32)])
    said = segments(adapter, sound)
    words = [word for segment in said for word in segment["words"]]
    assert len(words) >= 5 and all(word["start"] < word["end"] for word in words)
    assert all(one["end"] <= after["start"] + 0.02 for one, after in itertools.pairwise(words))
    assert words[0]["start"] > 2.9 and words[-1]["end"] < 3.1 + len(speech) / RATE
    assert said[0]["start"] == words[0]["start"] and "words" not in segments(adapter, sound, word_timestamps=False)[0]


def test_the_answer_does_not_depend_on_what_was_heard_before(adapter: PocketsphinxAdapter) -> None:
    first, *others = (load(prompt) for prompt in prompts(8))
    before = segments(adapter, first)
    for other in others:
        segments(adapter, other)
    after = segments(adapter, first)
    assert joined(before) == joined(after)
    assert [word["start"] for word in before[0]["words"]] == [word["start"] for word in after[0]["words"]]


@pytest.mark.parametrize("sound", [np.zeros(60 * RATE, np.float32), tone(5.0), np.zeros(1, np.float32)], ids=len)
def test_what_is_no_speech_has_no_words(adapter: PocketsphinxAdapter, sound: Any) -> None:
    assert segments(adapter, sound) == []


def test_pauses_divide_and_long_speech_is_cut(adapter: PocketsphinxAdapter) -> None:
    speech = load(prompts(100)[2])
    sound = np.concatenate([speech, np.zeros(RATE, np.float32)] * 3)
    assert len(segments(adapter, sound)) >= 3
    breathless = np.tile(speech[RATE // 3 : -RATE // 3], 12)
    said = segments(adapter, breathless)
    assert len(said) >= 2 and max(segment["end"] - segment["start"] for segment in said) < 15.5


def test_another_language_is_refused_by_name(adapter: PocketsphinxAdapter) -> None:
    with pytest.raises(InputError, match="only English"):
        segments(adapter, tone(1.0), language="de")
    assert segments(adapter, tone(1.0), language="en", task="translate") == []


def test_telephone_speech_is_told_from_wideband() -> None:
    prompt = load(prompts(10)[0])
    assert is_narrowband(prompt) and is_narrowband(tone(1.0))
    noise = np.random.default_rng(1).normal(0, 0.01, len(prompt)).astype(np.float32)
    assert not is_narrowband(prompt + noise)
    assert not is_narrowband(widen(prompt)) and not is_narrowband(np.zeros(10, np.float32))


@pytest.mark.parametrize("count", [0, 1, 159, 160, 400, 16_000, 16_001])
def test_the_lower_band_stays_as_it_is(count: int) -> None:
    sound = tone(2.0, hz=500)[:count]
    wide = widen(sound)
    assert wide.shape == sound.shape and wide.dtype == np.float32
    if count >= 16_000:
        difference = np.abs(np.fft.rfft(wide - sound))
        hertz = np.fft.rfftfreq(count, 1 / RATE)
        assert difference[hertz < 3500].max() < 0.01 * np.abs(np.fft.rfft(sound)).max()
