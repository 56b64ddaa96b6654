"""The aligner against speech whose times are known, and against recorded prompts. Figures are printed (`-s`)."""

import random
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pocketsphinx
import pytest
import soxr

from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.alignment.aligner import Aligner, Alignment
from tests.prompts import prompts
from tests.spoken import RATE, SENTENCES, VOICES, paired, say

ONSET_S = 0.025
WORD_ONSET_S = 0.05


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    folder = Path(pocketsphinx.get_model_path("en-us"))
    return Aligner(folder / "en-us", folder / "cmudict-en-us.dict")


@pytest.fixture(scope="module")
def recorded() -> list[tuple[Any, str]]:
    """Forty telephone prompts at 16 kHz, and their words."""
    found = []
    for prompt in prompts(40):
        with wave.open(str(prompt.path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
            found.append((np.ascontiguousarray(soxr.resample(samples, file.getframerate(), RATE)), prompt.text))
    return found


def onsets(found: Alignment) -> list[tuple[str, float]]:
    return [(phone.name.rstrip("012"), phone.start_s) for word in found.words for phone in word.phones]


def share_within(
    aligner: Aligner, voice: str, wpm: int, spoil: Callable[[Any], Any] = lambda samples: samples
) -> float:
    """Share of all sounds that were said whose onset was found within 25 ms; one not found is missed."""
    hits = total = 0
    for text in SENTENCES:
        known = say(text, voice, wpm)
        found = onsets(aligner.align(spoil(known.samples), text))
        pairs = paired([name for name, _ in known.sounds], [name for name, _ in found])
        for number, (_, start) in enumerate(known.sounds):
            if np.isfinite(start):
                total += 1
                hits += number in pairs and abs(found[pairs[number]][1] - start) <= ONSET_S
    assert total > 600
    return hits / total


@pytest.mark.parametrize(("voice", "wpm"), VOICES)
def test_onsets_of_seven_in_ten_sounds_are_within_25_ms(aligner: Aligner, voice: str, wpm: int) -> None:
    share = share_within(aligner, voice, wpm)
    print(f"\nonsets within 25 ms, {voice} at {wpm} words a minute: {share:.1%}")
    assert share >= 0.7


def test_noise_takes_little_of_it(aligner: Aligner) -> None:
    noise = np.random.default_rng(1)
    share = share_within(
        aligner,
        "en-us",
        175,
        lambda samples: samples + noise.normal(0, samples.std() / 10, len(samples)).astype(np.float32),
    )
    print(f"\nonsets within 25 ms, 20 dB above white noise: {share:.1%}")
    assert share >= 0.65


def test_silence_around_speech_moves_nothing(aligner: Aligner) -> None:
    known = say(SENTENCES[0])
    plain = onsets(aligner.align(known.samples, SENTENCES[0]))
    quiet = np.zeros(RATE, np.float32)
    padded = onsets(aligner.align(np.concatenate([quiet, known.samples, quiet]), SENTENCES[0]))
    moved = [abs(late - 1.0 - early) for (_, early), (_, late) in zip(plain, padded, strict=True)]
    assert sorted(moved)[int(0.9 * len(moved))] <= ONSET_S


def loud_from(samples: Any) -> float:
    """When the recording first comes within 35 dB of its loudest hundredth of a second (s)."""
    frames = samples[: len(samples) // 80 * 80].reshape(-1, 80)
    levels = np.sqrt(np.convolve((frames**2).mean(axis=1), [0.5, 0.5], "same")) + 1e-9
    return float(np.flatnonzero(levels > levels.max() * 10 ** (-35 / 20))[0] * 80 / RATE)


def test_first_words_of_real_recordings_begin_where_the_sound_does(
    aligner: Aligner, recorded: list[tuple[Any, str]]
) -> None:
    late = [aligner.align(samples, text).words[0].phones[0].start_s - loud_from(samples) for samples, text in recorded]
    share = float(np.mean(np.abs(late) <= WORD_ONSET_S))
    print(f"\nfirst words within 50 ms of the sound's beginning: {share:.0%}, median {np.median(late) * 1000:.0f} ms")
    assert share >= 0.8 and abs(np.median(late)) <= 0.03


def test_a_text_that_was_not_said_is_hardly_believed(aligner: Aligner, recorded: list[tuple[Any, str]]) -> None:
    chance = random.Random(7)
    right, wrong = [], []
    for samples, text in recorded:
        right.append(aligner.align(samples, text).confidence)
        words = set(text.lower().split())
        others = [
            other
            for _, other in recorded
            if 0.7 < len(other) / len(text) < 1.3 and len(words & set(other.lower().split())) < 3
        ]
        if others:
            wrong.append(aligner.align(samples, chance.choice(others)).confidence)
    better = np.mean(np.array(right)[:, None] > np.array(wrong)[None])
    print(
        f"\nright texts {np.percentile(right, [5, 50])}, wrong ones {np.percentile(wrong, [50, 95])}, told {better:.1%}"
    )
    assert len(wrong) > 20
    assert np.median(right) > 0.9 and np.median(wrong) < 0.2
    assert better > 0.95


def test_phones_and_words_are_less_sure_than_the_text_but_tell_too(aligner: Aligner) -> None:
    samples = say(SENTENCES[1]).samples
    right, wrong = aligner.align(samples, SENTENCES[1]), aligner.align(samples, SENTENCES[9])

    def means(found: Alignment) -> tuple[float, float]:
        words = [word.confidence for word in found.words]
        phones = [phone.confidence for word in found.words for phone in word.phones]
        return float(np.mean(words)), float(np.mean(phones))

    assert all(told > untold + 0.2 for told, untold in zip(means(right), means(wrong), strict=True))


def test_one_wrong_word_among_right_ones_stands_out(aligner: Aligner) -> None:
    samples = say("The second question was much harder than the first one.").samples
    found = aligner.align(samples, "The second elephant was much harder than the first one.")
    doubted = min(found.words, key=lambda word: word.confidence)
    assert doubted.text == "elephant"


def test_silence_and_noise_are_believed_to_say_nothing(aligner: Aligner) -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 3 * RATE).astype(np.float32)
    for samples in (np.zeros(3 * RATE, np.float32), noise):
        assert aligner.align(samples, "Please enter your number.").confidence < 0.2


def test_ten_seconds_take_less_than_one(aligner: Aligner) -> None:
    texts = SENTENCES[:3]
    samples = np.concatenate([say(text).samples for text in texts])[: 10 * RATE]
    assert len(samples) > 9.5 * RATE
    took_s = []
    for _ in range(3):
        started = time.process_time()
        aligner.align(samples, " ".join(texts))
        took_s.append(time.process_time() - started)
    print(f"\n{len(samples) / RATE:.1f} s aligned in {min(took_s):.2f} s")
    assert min(took_s) <= 1.0


def test_times_are_in_order_and_inside(aligner: Aligner) -> None:
    samples = say(SENTENCES[8]).samples
    found = aligner.align(samples, SENTENCES[8])
    assert [word.text for word in found.words] == [word.strip(".,") for word in SENTENCES[8].split()]
    reached = 0.0
    for word in found.words:
        for phone in word.phones:
            assert reached <= phone.start_s < phone.end_s <= len(samples) / RATE
            assert 0 <= phone.confidence <= 1
            reached = phone.end_s


def test_minutes_of_speech_are_followed_to_the_end(aligner: Aligner) -> None:
    """Long enough for the narrowed search; the same sentences found one by one must be found in it."""
    spoken = [say(text).samples for text in SENTENCES]
    repeated = 2
    samples = np.concatenate(spoken * repeated)
    found = aligner.align(samples, " ".join(SENTENCES * repeated))
    starts = np.cumsum([0, *(len(each) for each in spoken * repeated)]) / RATE
    firsts = np.cumsum([0, *(len(text.split()) for text in SENTENCES * repeated)])
    off = [
        abs(found.words[first].phones[0].start_s - start) for first, start in zip(firsts[:-1], starts[:-1], strict=True)
    ]
    assert found.confidence > 0.8 and float(np.mean(np.array(off) < 0.1)) > 0.9


def test_a_text_that_cannot_be_said_so_fast_is_refused(aligner: Aligner) -> None:
    with pytest.raises(InputError, match=r"takes .* s or more"):
        aligner.align(np.zeros(RATE // 2, np.float32), " ".join(SENTENCES))
    with pytest.raises(InputError, match=r"takes .* s or more"):
        aligner.align(np.zeros(10, np.float32), "hello")


@pytest.mark.parametrize("text", ["", " ... ", "?!", "—"])
def test_a_text_without_words_is_refused(aligner: Aligner, text: str) -> None:
    with pytest.raises(InputError, match="nothing in it"):
        aligner.align(np.zeros(RATE, np.float32), text)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    folder = Path(pocketsphinx.get_model_path("en-us"))
    with pytest.raises(ModelLoadError, match=tmp_path.name):
        Aligner(tmp_path, folder / "cmudict-en-us.dict")
    with pytest.raises(ModelLoadError, match="dictionary"):
        Aligner(folder / "en-us", tmp_path / "no.dict")


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    folder = Path(pocketsphinx.get_model_path("en-us/en-us"))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "means").read_bytes()
    for damaged in (whole[:1000], b"nonsense", b""):
        (tmp_path / "means").write_bytes(damaged)
        with pytest.raises(ModelLoadError, match="acoustic model"):
            Aligner(tmp_path, Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")))
