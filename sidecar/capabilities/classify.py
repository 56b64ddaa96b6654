"""Any text classifier that the user adds by a TOML: labels, template and threshold are the model's own."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

from sidecar.capabilities.base import (
    Capability,
    Endpoint,
    InferenceRequest,
    LabelScore,
    Meta,
    TextClassifier,
    probabilities,
    ranked,
    text_cost,
)

MAX_BATCH_TEXTS = 256
# More than fills any encoder's window; the rest could not be read anyway.
_MAX_CHARACTERS = 32_768

Item = str | tuple[str, str]


class ClassifyRequest(InferenceRequest):
    """One text, or a pair of texts. Longer than the model's window is truncated."""

    text: str
    text_pair: str | None = None
    threshold: float | None = Field(None, ge=0, le=1, strict=True, description="instead of the model's own")


class ClassifyResponse(BaseModel):
    """`labels` hold: the best one, or all above the threshold where several may. `scores` has all, descending."""

    labels: list[str]
    scores: list[LabelScore]
    threshold: float | None
    multi_label: bool
    model: str
    processing_time_ms: float


def _from_text(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


class ClassifyBatchRequest(InferenceRequest):
    """Up to 256 texts, each a text or an object with `text` and `text_pair`."""

    texts: Annotated[list[Annotated[ClassifyRequest, BeforeValidator(_from_text)]], Field(max_length=MAX_BATCH_TEXTS)]
    threshold: float | None = Field(None, ge=0, le=1, strict=True)


class ClassifyBatchResponse(BaseModel):
    """One result per text, in order."""

    results: list[ClassifyResponse]


class Classified(NamedTuple):
    """What the runner gives."""

    scores: list[tuple[str, float]]
    multi_label: bool
    threshold: float | None


class Classify(Capability[ClassifyRequest, Item, Classified, ClassifyResponse]):
    """`POST /classify/{model}` and `/classify/{model}/batch`."""

    name = "classify"
    addressed = True
    endpoints: ClassVar[tuple[Endpoint, ...]] = (
        Endpoint(
            path="/classify/{model}",
            request=ClassifyRequest,
            response=ClassifyResponse,
            summary="Labels of a text, or of a pair of texts, by this classifier",
            example={"text": "The parcel came broken."},
        ),
        Endpoint(
            path="/classify/{model}/batch",
            request=ClassifyBatchRequest,
            response=ClassifyBatchResponse,
            summary="The same of several texts",
            example={"texts": ["The parcel came broken.", {"text": "It rains.", "text_pair": "It is dry."}]},
            split=lambda batch: _split(batch),
            join=lambda responses: ClassifyBatchResponse.model_construct(results=list(responses)),
            bulk=True,
        ),
    )

    def prepare(self, request: ClassifyRequest) -> Item:
        text = request.text[:_MAX_CHARACTERS]
        return text if request.text_pair is None else (text, request.text_pair[:_MAX_CHARACTERS])

    def cost(self, item: Item) -> int:
        return text_cost(item if isinstance(item, str) else item[0] + item[1], 512)

    def run_batch(self, adapter: TextClassifier, items: Sequence[Item]) -> list[Classified]:
        labels = adapter.labels(self.name)
        multi_label, threshold = adapter.decision(self.name)
        rows = probabilities(adapter.classify(items, self.name), multi_label)
        return [Classified(ranked(labels, row), multi_label, threshold) for row in rows]

    def finish(self, output: Any, meta: Meta) -> ClassifyResponse:
        scores, multi_label, threshold = output
        if meta.request.threshold is not None:
            threshold = meta.request.threshold
        candidates = scores if multi_label else scores[:1]
        return ClassifyResponse.model_construct(
            labels=[label for label, score in candidates if threshold is None or score > threshold],
            scores=[LabelScore(label=label, score=score) for label, score in scores],
            threshold=threshold,
            multi_label=multi_label,
            model=meta.model,
            processing_time_ms=meta.processing_time_ms,
        )


def _split(batch: ClassifyBatchRequest) -> list[ClassifyRequest]:
    common = {"model": batch.model, "keep_alive": batch.keep_alive, "threshold": batch.threshold}
    return [
        # The path names the model: what an item says does not count.
        each.model_copy(update={key: value for key, value in common.items() if key == "model" or value is not None})
        for each in batch.texts
    ]
