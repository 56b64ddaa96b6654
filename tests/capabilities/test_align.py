"""The alignment capability without a model: limits, and what becomes of an adapter's answer."""

from typing import Any

import numpy as np
import pytest

from sidecar import wire
from sidecar.capabilities.align import MAX_S, Align, Alignment, AlignRequest
from sidecar.capabilities.base import Meta
from sidecar.errors import AudioTooLongError, InputError
from tests.capabilities.test_textgrid import read

FOUND: Alignment = {
    "words": [
        {"word": "Hi", "confidence": 0.91234, "phones": [("HH", "h", 0.1, 0.2, 0.8), ("AY1", "ˈaɪ", 0.2, 0.45, 0.9)]},
        {"word": "you", "confidence": 0.5, "phones": [("Y", "j", 0.5, 0.56, 0.7), ("UW1", "ˈu", 0.56, 0.7, 0.6)]},
    ],
    "confidence": 0.98765,
    "duration_s": 1.0,
}


def request(seconds: float = 1.0, **fields: Any) -> AlignRequest:
    asked = AlignRequest(**{"text": "Hi you", **fields})
    asked.hear(np.zeros(int(seconds * 16_000), np.float32))
    return asked


def finish(**fields: Any) -> Any:
    return Align().finish(FOUND, Meta("some-model", 12.3, request(**fields)))


def test_the_answer_has_phonemes_words_and_confidences() -> None:
    answer = finish()
    assert answer.model == "some-model" and answer.processing_time_ms == 12.3
    assert answer.confidence == 0.9877 and answer.duration_ms == 1000
    assert answer.phonemes[1].model_dump() == {
        "phoneme": "AY1", "ipa": "ˈaɪ", "start_ms": 200.0, "end_ms": 450.0, "confidence": 0.9,
    }  # fmt: skip
    assert answer.words[0].model_dump() == {"word": "Hi", "start_ms": 100.0, "end_ms": 450.0, "confidence": 0.9123}
    assert answer.textgrid is None and answer.visemes is None


def test_textgrid_and_visemes_come_when_asked_for() -> None:
    answer = finish(textgrid=True, visemes=True)
    end, tiers = read(answer.textgrid)
    assert end == 1.0
    assert [each.label for each in tiers["words"]] == ["", "Hi", "", "you", ""]
    assert [each.label for each in tiers["phones"] if each.label] == ["HH", "AY1", "Y", "UW1"]
    assert answer.visemes[0].time_ms == 0 and answer.visemes[-1].time_ms == 1000


def test_the_runner_gets_text_and_samples() -> None:
    item = Align().prepare(request(text="Hi you"))
    sent = wire.decode(wire.encode(wire.Infer(1, "align", [item]))[4:])
    assert isinstance(sent, wire.Infer)

    class Adapter:
        def align(self, samples: Any, text: str) -> Alignment:
            assert samples.dtype == np.float32 and samples.shape == (16_000,) and text == "Hi you"
            return FOUND

    assert Align().run_batch(Adapter(), sent.items) == [FOUND]


def test_blank_text_and_too_long_audio_are_refused() -> None:
    with pytest.raises(InputError, match="blank"):
        Align().prepare(request(text=" \n "))
    with pytest.raises(AudioTooLongError, match="600 s"):
        Align().prepare(request(seconds=MAX_S + 1))


def test_longer_recordings_cost_more() -> None:
    short, long = (Align().cost(Align().prepare(request(seconds))) for seconds in (1.0, 10.0))
    assert 1 <= short < long


def test_samples_cannot_be_sent_as_a_field() -> None:
    asked = AlignRequest.model_validate({"text": "Hi", "samples": [0.0], "_samples": [0.0]})
    assert asked.samples is None
    assert "samples" not in AlignRequest.model_json_schema()["properties"]
