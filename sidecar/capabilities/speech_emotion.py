"""Speech emotion: what a voice sounds like, and with a transcript also what its words say."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, Field

from sidecar.capabilities.base import Capability, Endpoint, LabelScore, Meta, ranked
from sidecar.capabilities.emotion import EmotionResponse
from sidecar.capabilities.recording import SAMPLE_RATE, RecordingRequest, recording_cost
from sidecar.errors import AudioError, AudioTooLongError

MAX_S = 600.0
_SHORTEST_S = 0.1

# Names that trained models give to our seven classes. Others stay as they are.
_NAMES = {
    "neu": "neutral", "calm": "neutral", "hap": "joy", "happy": "joy", "happiness": "joy", "exc": "joy",
    "excited": "joy", "ang": "anger", "angry": "anger", "sad": "sadness", "fea": "fear", "fearful": "fear",
    "dis": "disgust", "disgusted": "disgust", "sur": "surprise", "surprised": "surprise", "ps": "surprise",
}  # fmt: skip

_SPEECH_SHARE = 0.6
_SURE_SPEECH_SHARE = 0.8
_SURE = 0.7
_DECIDED = 0.5


class SoundClassifier(Protocol):
    """What an adapter offers to capabilities that classify recordings."""

    def labels(self, head: str) -> Sequence[str]:
        """Label names of `head`."""

    def listen(self, samples: Any, head: str) -> Any:
        """Probabilities, float32 (labels,), of float32 samples (n,), mono, 16 kHz."""


class SpeechEmotionRequest(RecordingRequest):
    """A recording, and perhaps what is said in it."""

    text: str | None = Field(
        None, max_length=100_000, description="transcript: its emotion is then weighed against that of the voice"
    )


class Channel(BaseModel):
    """What one of the two channels says by itself."""

    emotion: str
    confidence: float
    all_emotions: list[LabelScore]
    model: str
    weight: float


class Channels(BaseModel):
    """Both channels; `decided` is False where neither the best class of both together reached one half, and the
    answer therefore is neutral."""

    speech: Channel
    text: Channel
    disagree: bool
    decided: bool


class SpeechEmotionResponse(BaseModel):
    """The likeliest emotion, its probability, and all classes that the model knows in descending order.

    With a transcript these are those of voice and words together, and `channels` shows each.
    """

    emotion: str
    confidence: float
    all_emotions: list[LabelScore]
    processing_time_ms: float
    model: str
    channels: Channels | None = None


class SpeechEmotion(Capability[SpeechEmotionRequest, Any, list[tuple[str, float]], SpeechEmotionResponse]):
    """`POST /speech-emotion/detect`, whose route takes audio and so is its own."""

    name = "speech_emotion"
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()

    def prepare(self, request: SpeechEmotionRequest) -> Any:
        duration_s = len(request.samples) / SAMPLE_RATE
        if duration_s < _SHORTEST_S:
            raise AudioError(
                f"the audio has {duration_s * 1000:.0f} ms; an emotion takes {_SHORTEST_S * 1000:.0f} or more"
            )
        if duration_s > MAX_S:
            raise AudioTooLongError(f"the audio has {duration_s:.0f} s; {MAX_S:g} s can be judged at once")
        return request.samples

    def cost(self, item: Any) -> int:
        return recording_cost(item)

    def run_batch(self, adapter: SoundClassifier, items: Sequence[Any]) -> list[list[tuple[str, float]]]:
        labels = [_NAMES.get(label.lower(), label.lower()) for label in adapter.labels(self.name)]
        return [_joined(ranked(labels, adapter.listen(item.numpy(), self.name))) for item in items]

    def finish(self, output: Sequence[tuple[str, float]], meta: Meta) -> SpeechEmotionResponse:
        return SpeechEmotionResponse(
            emotion=output[0][0],
            confidence=round(output[0][1], 6),
            all_emotions=_scores(output),
            processing_time_ms=meta.processing_time_ms,
            model=meta.model,
        )


class Fused(NamedTuple):
    """The joint answer, all classes in descending order, and what led to it."""

    emotion: str
    confidence: float
    scores: list[tuple[str, float]]
    speech_weight: float
    decided: bool


def fuse(speech: Sequence[tuple[str, float]], text: Sequence[tuple[str, float]]) -> Fused:
    """Weigh two channels, each (label, probability) in descending order: the voice counts 60 %, above a confidence of
    0.7 it counts 80 %. A class that a channel does not know has no probability there. Below one half the answer is
    neutral, with the probability of neutral."""
    weight = _SURE_SPEECH_SHARE if speech[0][1] > _SURE else _SPEECH_SHARE
    of_speech, of_text = dict(speech), dict(text)
    joint = {
        label: weight * of_speech.get(label, 0.0) + (1 - weight) * of_text.get(label, 0.0)
        for label in dict.fromkeys([*of_speech, *of_text])
    }
    scores = sorted(joint.items(), key=lambda pair: -pair[1])
    emotion, confidence = scores[0]
    decided = confidence >= _DECIDED
    if not decided:
        emotion, confidence = "neutral", joint.get("neutral", 0.0)
    return Fused(emotion, confidence, scores, weight, decided)


def join(speech: SpeechEmotionResponse, text: EmotionResponse, processing_time_ms: float) -> SpeechEmotionResponse:
    """The answer to a recording with a transcript."""
    fused = fuse(_pairs(speech.all_emotions), _pairs(text.all_emotions))
    return SpeechEmotionResponse(
        emotion=fused.emotion,
        confidence=round(fused.confidence, 6),
        all_emotions=_scores(fused.scores),
        processing_time_ms=processing_time_ms,
        model=speech.model,
        channels=Channels(
            speech=_channel(speech, fused.speech_weight),
            text=_channel(text, 1 - fused.speech_weight),
            disagree=speech.emotion != text.emotion,
            decided=fused.decided,
        ),
    )


def _channel(answer: SpeechEmotionResponse | EmotionResponse, weight: float) -> Channel:
    return Channel(
        emotion=answer.emotion,
        confidence=answer.confidence,
        all_emotions=answer.all_emotions,
        model=answer.model,
        weight=round(weight, 2),
    )


def _joined(scores: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Classes that have become one, by their new name."""
    joint: dict[str, float] = {}
    for label, score in scores:
        joint[label] = joint.get(label, 0.0) + score
    return sorted(joint.items(), key=lambda pair: -pair[1])


def _scores(pairs: Sequence[tuple[str, float]]) -> list[LabelScore]:
    return [LabelScore(label=label, score=round(score, 6)) for label, score in pairs]


def _pairs(scores: Sequence[LabelScore]) -> list[tuple[str, float]]:
    return [(each["label"], each["score"]) for each in scores]
