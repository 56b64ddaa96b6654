"""Text emotion: seven classes (Ekman's six and neutral)."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from sidecar.capabilities.base import (
    Capability,
    Endpoint,
    InferenceRequest,
    LabelScore,
    Meta,
    Tensor,
    TensorForm,
    TextClassifier,
    probabilities,
    ranked,
    text_cost,
)

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
MAX_BATCH_TEXTS = 256

# A text is cut to what could fill the window at one character a token: the rest could not be read by the model anyway,
# and a megabyte is neither sent to the runner nor tokenised there.
_MAX_CHARACTERS = 8192


class EmotionRequest(InferenceRequest):
    """One text. Blank is answered neutral; longer than the model's window is truncated."""

    text: str


class EmotionResponse(BaseModel):
    """The likeliest emotion, its probability, and all seven in descending order."""

    emotion: str
    confidence: float
    all_emotions: list[LabelScore]
    processing_time_ms: float
    model: str


class EmotionBatchRequest(InferenceRequest):
    """Up to 256 texts."""

    texts: Annotated[list[str], Field(max_length=MAX_BATCH_TEXTS)]


class EmotionBatchResponse(BaseModel):
    """One result per text, in order."""

    results: list[EmotionResponse]


def _row(response: EmotionResponse) -> tuple[str, float, list[float]]:
    scores = {each["label"]: each["score"] for each in response.all_emotions}
    return response.emotion, response.confidence, [scores.get(label, 0.0) for label in LABELS]


class Emotion(Capability[EmotionRequest, str, list[tuple[str, float]], EmotionResponse]):
    """`POST /emotion/detect` and `/emotion/detect/batch`."""

    name = "emotion"
    endpoints: ClassVar[tuple[Endpoint, ...]] = (
        Endpoint(
            path="/emotion/detect",
            request=EmotionRequest,
            response=EmotionResponse,
            summary="Emotion of a text",
            example={"text": "I am so happy today!"},
        ),
        Endpoint(
            path="/emotion/detect/batch",
            request=EmotionBatchRequest,
            response=EmotionBatchResponse,
            summary="Emotion of several texts",
            example={"texts": ["I am so happy today!", "They cancelled it again without a word."]},
            split=lambda batch: [
                EmotionRequest(text=text, model=batch.model, keep_alive=batch.keep_alive) for text in batch.texts
            ],
            join=lambda responses: EmotionBatchResponse(results=list(responses)),
            bulk=True,
        ),
    )
    tensors = TensorForm(
        inputs=(Tensor("text", "BYTES"),),
        outputs=(
            Tensor("label", "BYTES"),
            Tensor("confidence", "FP32"),
            Tensor("scores", "FP32", (-1, len(LABELS)), labels=LABELS),
        ),
        request=EmotionRequest,
        row=_row,
    )

    def shortcut(self, request: EmotionRequest, model: str) -> EmotionResponse | None:
        if request.text.strip():
            return None
        neutral = LabelScore(label="neutral", score=1.0)
        return EmotionResponse(
            emotion="neutral", confidence=1.0, all_emotions=[neutral], processing_time_ms=0.0, model=model
        )

    def prepare(self, request: EmotionRequest) -> str:
        return request.text[:_MAX_CHARACTERS]

    def cost(self, item: str) -> int:
        return text_cost(item)

    def run_batch(self, adapter: TextClassifier, items: Sequence[str]) -> list[list[tuple[str, float]]]:
        labels = adapter.labels("emotion")
        return [ranked(labels, row) for row in probabilities(adapter.classify(items, "emotion"))]

    def finish(self, output: list[tuple[str, float]], meta: Meta) -> EmotionResponse:
        # Built without validation: the values are ours, and this is on every request's path.
        scores = [LabelScore(label=label, score=round(score, 6)) for label, score in output]
        return EmotionResponse.model_construct(
            emotion=scores[0]["label"],
            confidence=scores[0]["score"],
            all_emotions=scores,
            processing_time_ms=meta.processing_time_ms,
            model=meta.model,
        )
