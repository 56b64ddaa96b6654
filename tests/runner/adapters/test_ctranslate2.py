"""Whisper in CTranslate2's format: every option reaches the library, and its answer is the library's own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sidecar.capabilities.asr import Head, Segment, joined, split_pieces
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.adapters.ctranslate2 import WhisperAdapter, _times
from tests.prompts import load, prompts
from tests.runner.adapters.test_pocketsphinx import OPTIONS
from tests.sound import RATE, tone
from tests.tiny_whisper import SAYS, TRANSLATES, write_whisper


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("multilingual"), multilingual=True)


def load_adapter(folder: Path, device: str = "cpu", **options: Any) -> WhisperAdapter:
    values = {"id": "tiny", "title": "t", "capabilities": ["asr"], "runtime": "ctranslate2", "licence": "MIT"}
    spec = ModelSpec.model_validate({**values, "folder": folder, "options": options})
    adapter = WhisperAdapter(spec, 1, device)
    adapter.load(lambda item, done, total, unit: None)
    return adapter


def hear(adapter: WhisperAdapter, sound: Any, **options: Any) -> tuple[Head, list[Segment]]:
    given: Any = {**OPTIONS, "vad_filter": False, "word_timestamps": False, **options}
    return split_pieces(list(adapter.transcribe(sound, given)))


def test_text_and_times(english: Path) -> None:
    head, said = hear(load_adapter(english), tone(3.0))
    assert head == {"language": "en", "language_probability": 1.0, "duration_s": 3.0}
    assert joined(said) == SAYS.strip() and (said[0]["start"], said[0]["end"]) == (0.0, 2.0)
    assert said[0]["avg_logprob"] == pytest.approx(0, abs=0.01) and "words" not in said[0]


def test_words(english: Path) -> None:
    _, said = hear(load_adapter(english), tone(3.0), word_timestamps=True)
    words = said[0]["words"]
    assert [word["word"] for word in words] == [" Hello", " wonderful", " world."]
    assert all(word["start"] <= word["end"] and 0 <= word["probability"] <= 1 for word in words)


def test_the_language_is_recognised_and_translated(multilingual: Path) -> None:
    adapter = load_adapter(multilingual)
    head, said = hear(adapter, tone(3.0))
    assert head["language"] == "de" and head["language_probability"] > 0.9 and joined(said) == SAYS.strip()
    head, said = hear(adapter, tone(3.0), language="fr", task="translate")
    assert head["language"] == "fr" and joined(said) == TRANSLATES.strip()


def test_prompts_hotwords_and_temperature_are_taken(multilingual: Path) -> None:
    adapter = load_adapter(multilingual)
    for options in ({"initial_prompt": "Hello."}, {"hotwords": "wonderful"}, {"temperature": 0.4}, {"beam_size": 1}):
        _, said = hear(adapter, tone(3.0), language="en", **options)
        assert joined(said) == SAYS.strip()
        assert said[0]["temperature"] == pytest.approx(options.get("temperature", 0.0))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_minute_of_silence_says_nothing_with_the_filter(english: Path, batch_size: int) -> None:
    adapter = load_adapter(english, batch_size=batch_size)
    silence = np.zeros(60 * RATE, np.float32)
    head, said = hear(adapter, silence, vad_filter=True)
    assert said == [] and head["duration_s"] == 60.0
    assert joined(hear(adapter, silence, vad_filter=False)[1])  # the model does talk


def test_only_speech_passes_the_filter_and_keeps_its_place(english: Path) -> None:
    speech = load(prompts(20)[0])
    sound = np.concatenate([np.zeros(20 * RATE, np.float32), speech, np.zeros(20 * RATE, np.float32)])
    _, said = hear(load_adapter(english), sound, vad_filter=True)
    assert said and 19 < said[0]["start"] < 21


@pytest.mark.parametrize("batch_size", [1, 4])
def test_long_recordings_window_after_window_or_in_batches(english: Path, batch_size: int) -> None:
    speech = np.concatenate([load(prompt) for prompt in prompts(20)[:12]])
    assert len(speech) > 30 * RATE
    _, said = hear(load_adapter(english, batch_size=batch_size), speech, vad_filter=True)
    assert len(said) >= 2 and all(segment["text"] == SAYS for segment in said)
    assert [segment["id"] for segment in said] == list(range(len(said)))


def test_an_english_model_refuses_other_languages(english: Path) -> None:
    with pytest.raises(InputError, match="only English"):
        hear(load_adapter(english), tone(1.0), language="de")


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "model.bin"])
def test_a_missing_file_is_named_and_not_looked_for_elsewhere(english: Path, tmp_path: Path, missing: str) -> None:
    for path in english.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ModelLoadError, match=missing):
        load_adapter(tmp_path)


def test_without_a_gpu_it_runs_on_the_cpu_and_says_why(english: Path) -> None:
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        adapter = load_adapter(english, device="cuda")
        assert adapter.device in ("cpu", "cuda:0") and adapter.device_reason
        return
    for device in ("auto", "cuda", "mps"):
        adapter = load_adapter(english, device=device)
        assert adapter.device == "cpu" and "CPU" in adapter.device_reason
    assert "no CUDA device" in load_adapter(english, device="cuda").device_reason


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        (1.0, 2.0, (1.0, 2.0)),
        (-0.02, 0.5, (0.0, 0.5)),
        (2.9, 29.98, (2.9, 3.0)),
        (18.0, 23.0, (3.0, 3.0)),
        (2.0, 1.0, (2.0, 2.0)),
    ],
)
def test_nothing_is_said_outside_of_the_recording(start: float, end: float, times: tuple[float, float]) -> None:
    assert _times(SimpleNamespace(start=start, end=end), 3.0) == times
