"""The Parler-TTS adapter: a tiny model in the real format, in the torch profile's environment."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import wire
from sidecar.capabilities.tts import EMOTIONS, Delivery, SpeechRequest, Synthesis
from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import InputError
from sidecar.runner.adapters.parler import ParlerAdapter
from tests.product import ROOT
from tests.runner.adapters.test_torch import Runner
from tests.tiny_parler import HOP, RATE, write_parler
from tests.torch_profile import torch_python

CLEAR = "The recording is of very high quality, with the voice sounding clear and very close up."
FOREVER = 2580


@pytest.fixture(scope="module")
def python() -> Path:
    return torch_python()


@pytest.fixture
def run(python: Path) -> Iterator[Callable[..., Runner]]:
    running: list[Runner] = []

    def start(folder: Path, **options: Any) -> Runner:
        running.append(Runner(python, spec(folder, **options), "cpu"))
        return running[-1]

    yield start
    for each in running:
        each.close()


def spec(folder: Path, **options: Any) -> ModelSpec:
    speaking = {"speakers": {"Jon": "male", "Laura": "female"}, "speaker": "Laura", **options}
    entry = {"id": "tiny", "title": "t", "capabilities": ["tts"], "runtime": "parler", "licence": "MIT"}
    return ModelSpec.model_validate({**entry, "profile": "torch", "folder": folder, "options": speaking})


def order(text: str, voice: str | None = None, timings: bool = False, **values: Any) -> dict[str, Any]:
    made = Synthesis().prepare(SpeechRequest(text=text, **values))
    return {**made, "voice": voice, "timings": timings}


def spoken(runner: Runner, text: str = "Hello there.", number: int = 1, **values: Any) -> list[Any]:
    """The pieces of a stream; the error, where it ends in one."""
    runner.send(wire.Infer(number, "tts", [order(text, **values)], credit=1000))
    pieces = []
    while isinstance(message := runner.next(), wire.Chunk):
        pieces.append(message.output)
    return [message] if isinstance(message, wire.Error) else pieces


def sound(pieces: list[Any]) -> Any:
    assert not isinstance(pieces[0], wire.Error), pieces[0]
    return np.concatenate([piece["audio"].numpy() for piece in pieces])


# In words


def described(**values: Any) -> str:
    voice = values.pop("voice", None)
    return ParlerAdapter(spec(ROOT), 1, "cpu").describe(voice, Delivery(**values))


def test_a_voice_an_emotion_or_both_become_a_description() -> None:
    assert described() == f"Laura's voice is natural and clear, speaking at a moderate pace. {CLEAR}"
    assert described(voice="Jon").startswith("Jon's voice is natural")
    assert described(voice="described") == described()
    manner = EMOTIONS["anger"].manner
    assert described(voice="Jon", manner=manner) == f"Jon's voice is angry and forceful, {manner[20:]}. {CLEAR}"


def test_a_description_is_passed_on_as_it_is() -> None:
    own = "An old man whispers, with a lot of background noise."
    assert described(description=own) == described(voice="described", description=own) == own
    assert described(description="A woman speaks fast. ") == f"A woman speaks fast. {CLEAR}"
    told = described(voice="Jon", description="Speak like a pirate", manner=EMOTIONS["joy"].manner)
    assert told == f"Jon is speaking. Speak like a pirate, {EMOTIONS['joy'].manner}. {CLEAR}"
    assert described(voice="Jon", description="jon mumbles").startswith("jon mumbles. ")
    with pytest.raises(InputError, match="no voice 'Gandalf'"):
        described(voice="Gandalf")


def test_the_catalogues_entry_needs_no_more_than_torch() -> None:
    entry = read_spec(BUILT_IN / "parler-tts-mini.toml")
    assert (entry.runtime, entry.profile, entry.source and entry.source.repo) == (
        *("parler", "torch"),
        "parler-tts/parler-tts-mini-v1",
    )
    assert len(entry.options["speakers"]) == 34 and entry.options["speaker"] in entry.options["speakers"]


# In a runner


@pytest.mark.slow
def test_it_speaks_in_parts_and_alike_for_the_same_seed(run: Callable[..., Runner], tmp_path: Path) -> None:
    runner = run(write_parler(tmp_path))
    assert isinstance(runner.ready, wire.Ready), runner.ready
    assert (runner.ready.device, runner.ready.device_reason) == ("cpu", "it is set to run on the CPU")
    pieces = spoken(runner)
    first = pieces[0]
    assert first["text"] == "Hello there." and first["sample_rate"] == RATE and first["words"] == []
    assert [piece["last"] for piece in pieces] == [*[False] * (len(pieces) - 1), True] and len(pieces) > 3
    audio = sound(pieces)
    assert len(audio) == (200 - 9) * HOP and audio.dtype == np.int16 and np.abs(audio.astype(int)).max() > 3000
    assert np.array_equal(audio, sound(spoken(runner)))
    for other in ({"seed": 1}, {"voice": "Jon"}, {"emotion": "anger"}, {"description": "A giant."}, {"text": "Bye."}):
        assert not np.array_equal(audio, sound(spoken(runner, **other))), other
    # What the model is told in words is not done to the sound as well.
    assert len(sound(spoken(runner, emotion="sadness", description="very slow and quiet"))) == len(audio)


@pytest.mark.slow
def test_speed_pauses_and_several_sentences(run: Callable[..., Runner], tmp_path: Path) -> None:
    runner = run(write_parler(tmp_path, shards=3))
    audio = sound(spoken(runner))
    fast = spoken(runner, speed=2.0)
    assert len(fast) == 1 and len(sound(fast)) == pytest.approx(len(audio) / 2, abs=10)
    pieces = spoken(runner, "Hello there. Good bye.")
    assert [piece["text"] for piece in pieces if piece["text"]] == ["Hello there.", "Good bye."]
    assert len(sound(pieces)) == 2 * len(audio) + int(0.2 * RATE)
    assert np.array_equal(sound(pieces)[: len(audio)], audio)


@pytest.mark.slow
def test_what_cannot_be_is_an_error_and_the_next_is_answered(run: Callable[..., Runner], tmp_path: Path) -> None:
    runner = run(write_parler(tmp_path, longest=FOREVER))
    [timed] = spoken(runner, timings=True)
    assert timed.code == "timings_not_told" and "does not tell its timings" in timed.message
    [unknown] = spoken(runner, voice="Gandalf")
    assert "no voice 'Gandalf'" in unknown.message
    [long] = spoken(runner, description="x" * 1500)
    assert "tokens; at most 512 are read" in long.message
    assert isinstance(runner.ready, wire.Ready) and runner.process.poll() is None


@pytest.mark.slow
def test_a_sentence_ends_between_two_columns_and_others_have_their_turn(
    run: Callable[..., Runner], tmp_path: Path
) -> None:
    """At another speed nothing is sent before all of it is made, which is 2580 columns here."""
    runner = run(write_parler(tmp_path, longest=FOREVER))
    runner.send(wire.Infer(1, "tts", [order("Hello there.", speed=0.5)], credit=1000))
    [refused] = spoken(runner, number=2, voice="Gandalf")
    assert refused.id == 2, "answered while the long one is being made"
    runner.send(wire.Cancel(1))
    ended = runner.next()
    assert (ended.id, ended.code) == (1, "cancelled"), "and not a chunk of it"


@pytest.mark.slow
def test_a_text_beyond_the_positions_is_refused(run: Callable[..., Runner], tmp_path: Path) -> None:
    # Two tokenizers, and the prompt in the cross attention: the fixture of the real package with 160 positions.
    folder = tmp_path / "cross"
    shutil.copytree(ROOT / "tests" / "fixtures" / "parler" / "cross", folder)
    runner = run(folder)
    assert len(sound(spoken(runner, "A b."))) > 0
    [long] = spoken(runner, "x" * 180)
    assert "tokens; this model has room for 160" in long.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer.json: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "model.safetensors: "),
        (lambda folder: changed(folder, vocab_size=80), "put tokenizer.json of google/flan-t5-large at"),
        (lambda folder: changed(folder, decoder={"ffn_dim": 31, "num_hidden_layers": 2}), "lack decoder.model.decoder"),
        (lambda folder: changed(folder, text_encoder={"num_layers": 2}), "lack text_encoder.encoder.block.1"),
        (lambda folder: changed(folder, text_encoder={"vocab_size": 9}, vocab_size=9), "they do not belong together"),
        (lambda folder: changed(folder, audio_encoder={"model_type": "encodec"}), "variant of Parler-TTS that is not"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(
    run: Callable[..., Runner], tmp_path: Path, break_it: Callable[[Path], Any], said: str
) -> None:
    break_it(write_parler(tmp_path))
    refused = run(tmp_path).ready
    assert isinstance(refused, wire.Error) and refused.code == "model_load_failed" and said in refused.message


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(told), encoding="utf-8")
