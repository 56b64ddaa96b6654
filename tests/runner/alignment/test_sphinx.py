"""The acoustic model as read from the wheel, and the features it is given."""

from pathlib import Path

import numpy as np
import pocketsphinx
import pytest

from sidecar.runner.alignment.features import SHIFT, features, loudness
from sidecar.runner.alignment.sphinx import STATES, SphinxModel
from tests.sound import tone
from tests.spoken import say


@pytest.fixture(scope="module")
def model() -> SphinxModel:
    return SphinxModel(Path(pocketsphinx.get_model_path("en-us/en-us")))


def best_phone(model: SphinxModel, samples: object, at_s: float) -> set[str]:
    """The three likeliest phones at a time."""
    scores = model.scores(features(samples)).reshape(-1, len(model.phones), STATES).max(axis=2)  # type: ignore[arg-type]
    return {model.phones[number] for number in np.argsort(-scores[int(at_s * 100)])[:3]}


def test_it_has_the_phones_of_english(model: SphinxModel) -> None:
    assert len(model.phones) == 42
    assert {"AA", "ZH", "SIL", "TH", "ER"} <= set(model.phones)
    assert np.isfinite(model.log_stay).all() and (model.log_stay < 0).all()


def test_it_hears_what_is_said(model: SphinxModel) -> None:
    known = say("Six zebras see the sea.", "en-us", 100)
    hits = 0
    middles = [(name, start) for name, start in known.sounds if name in ("S", "IY", "Z")]
    for name, start in middles:
        hits += name in best_phone(model, known.samples, start + 0.05)
    assert hits >= 0.6 * len(middles) > 4


def test_it_hears_silence_in_silence(model: SphinxModel) -> None:
    known = say("hello").samples
    assert "SIL" in best_phone(model, np.concatenate([np.zeros(16_000, np.float32), known]), 0.5)


def test_features_do_not_depend_on_loudness_or_on_block_borders() -> None:
    samples = say("the quick brown fox jumps over the lazy dog " * 6).samples
    assert len(samples) // SHIFT > 1000
    streams, quieter = features(samples), features(samples / 4)
    assert all(stream.shape == (len(samples) // SHIFT, 13) for stream in streams)
    assert np.corrcoef(streams[0].reshape(-1), quieter[0].reshape(-1))[0, 1] > 0.98
    piece = features(samples[: 1000 * SHIFT])
    assert np.allclose(piece[1][10:900], streams[1][10:900], atol=1e-3)


def test_loudness_is_in_decibels() -> None:
    samples = np.concatenate([np.zeros(1600, np.float32), tone(0.1, level=0.5), tone(0.1, level=0.05)])
    levels = loudness(samples)
    assert levels[:8].max() < -90
    assert levels[15] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.3)
    assert levels[15] - levels[25] == pytest.approx(20, abs=0.3)
