"""The capability itself: what becomes of a request, and that sentences are made one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.capabilities.tts import EMOTIONS, Delivery, Order, Span, Speech, SpeechRequest, Synthesis, delivered
from sidecar.errors import InputError

TTS = Synthesis()


class Recorder:
    """A speaker that writes down what it is asked to say."""

    sample_rate = 1000
    sentence_limit = 400

    def __init__(self) -> None:
        self.said: list[tuple[str, bool]] = []

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech]:
        self.said.append((sentence, pause))
        for part in sentence.split("|"):
            yield Speech(np.zeros(len(part), dtype=np.int16), [Span(part, 0.0, len(part) / 1000)])


def order(text: str, **values: Any) -> Order:
    return TTS.prepare(SpeechRequest(text=text, **values))


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\x00\x01", "\u200b", "\xad"])
def test_a_blank_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="blank"):
        order(text)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"furious.*joy"):
        order("x", emotion="furious")
    for wrong in ({"speed": 0.2}, {"speed": 4.1}, {"format": "ogg"}, {"text": "x" * 100_001}):
        with pytest.raises(ValidationError):
            SpeechRequest(**{"text": "x", **wrong})


def test_sentences_are_made_only_as_they_are_wanted() -> None:
    speaker = Recorder()
    pieces = TTS.run_stream(speaker, order("One. Two. Three."))
    assert speaker.said == []
    first = next(pieces)
    assert first is not None
    assert speaker.said == [("One.", True)] and first["text"] == "One." and not first["last"]
    rest = list(pieces)
    assert speaker.said == [("One.", True), ("Two.", True), ("Three.", False)]
    assert [piece["last"] for piece in rest] == [False, True]


def test_a_text_that_goes_on_ends_in_a_pause() -> None:
    speaker = Recorder()
    pieces = list(TTS.run_stream(speaker, Order(**{**order("One. Two."), "more": True})))
    assert speaker.said[-1] == ("Two.", True) and not pieces[-1]["last"]


def test_parts_of_one_sentence_name_its_text_once() -> None:
    pieces = list(TTS.run_stream(Recorder(), order("One|and more.")))
    assert [(piece["text"], piece["last"]) for piece in pieces] == [("One|and more.", False), ("", True)]
    assert pieces[1]["words"] == [("and more.", 0.0, 0.009)]


def test_parts_that_need_not_wait_do_not_and_steps_are_passed_on() -> None:
    class Slow(Recorder):
        def speak(
            self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
        ) -> Iterator[Speech | None]:
            self.said.append(("begun", pause))
            yield None
            yield Speech(np.zeros(3, dtype=np.int16), more=True)
            self.said.append(("goes on", pause))
            yield None
            yield Speech(np.zeros(2, dtype=np.int16))
            yield None

    speaker = Slow()
    pieces = TTS.run_stream(speaker, order("One."))
    assert next(pieces) is None
    first = next(pieces)
    assert first is not None and speaker.said == [("begun", False)], "sent before the second is made"
    assert (first["text"], first["last"]) == ("One.", False)
    rest = [piece for piece in pieces if piece is not None]
    assert [(piece["text"], piece["last"], len(piece["audio"])) for piece in rest] == [("", True, 2)]
    [whole] = TTS.run_batch(Slow(), [order("One.")])
    assert [len(piece["audio"]) for piece in whole] == [3, 2]


def test_voices_made_from_words_get_them_apart_from_the_factors() -> None:
    told = delivered(order("x", emotion="fear", description="A giant.", speed=1.5, seed=9))
    assert (told.manner, told.description) == (EMOTIONS["fear"].manner, "A giant.")
    assert (told.tempo, told.seed) == (1.5, 9) and told.speed == pytest.approx(1.65)
    with pytest.raises(ValidationError):
        SpeechRequest(text="x", seed=-1)


def test_emotions_are_those_of_the_text_capability_and_move_modestly() -> None:
    assert set(EMOTIONS) == {"anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"}
    for emotion in EMOTIONS.values():
        assert 0.85 <= emotion.speed <= 1.15 and 0.9 <= emotion.pitch <= 1.1 and 0.8 <= emotion.volume <= 1.25
    joy, sadness = delivered(order("x", emotion="joy", speed=2.0)), delivered(order("x", emotion="sadness"))
    assert joy.speed == pytest.approx(2.12) and joy.pitch > 1 > sadness.pitch and sadness.speed < 1
    assert "cheerful" in joy.manner and joy.description == ""


def test_a_description_moves_what_a_plain_voice_can_do() -> None:
    fast = delivered(order("x", description="She speaks very fast, in a high-pitched voice."))
    assert fast.speed == 1.25 and fast.pitch > 1
    quiet = delivered(order("x", description="a slow, deep whisper", emotion="sadness"))
    assert quiet.speed < 0.8 and quiet.pitch < 1 and quiet.volume < 0.6
    assert quiet.description == "a slow, deep whisper" and quiet.manner.startswith("sad") and quiet.tempo == 1
    extreme = delivered(order("x", description="quick rapid fast loud quiet soft whisper deep low pitch"))
    assert extreme.speed <= 1.5 and extreme.pitch >= 0.9 and extreme.volume >= 0.4


def test_run_batch_gives_every_item_its_pieces() -> None:
    outputs = TTS.run_batch(Recorder(), [order("One. Two."), order("Three.")])
    assert [[piece["text"] for piece in pieces] for pieces in outputs] == [["One.", "Two."], ["Three."]]
