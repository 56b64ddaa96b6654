"""Backchannels: whether an utterance only keeps the other speaker talking ("mm-hm"), given what was said before it."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, BeforeValidator, Field

from sidecar.capabilities.base import (
    Capability,
    Endpoint,
    InferenceRequest,
    Meta,
    Tensor,
    TensorForm,
    TextClassifier,
    probabilities,
    text_cost,
)

LABEL = "backchannel"
MAX_CHARACTERS = 500
_REMEMBERED = 1000


class BackchannelRequest(InferenceRequest):
    """One utterance and what the other speaker said before it, 500 characters each."""

    utterance: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    previous_utterance: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None


class BackchannelResponse(BaseModel):
    """The decision `p > threshold`; `confidence` is the probability of what was decided, whichever it is.

    `metadata`: the threshold that was in force, both probabilities, and whether a previous utterance was looked at.
    """

    is_backchannel: bool
    confidence: float
    model_used: str
    latency_ms: float
    metadata: dict[str, Any]


def _from_text(value: object) -> object:
    return {"utterance": value} if isinstance(value, str) else value


def _within_limit(values: object) -> object:
    """Before any of them is looked at: of a million faults each would be told."""
    limit = BACKCHANNEL.max_batch_size
    if isinstance(values, list) and len(values) > limit:
        raise ValueError(f"{len(values)} are more than {limit} (MAX_BATCH_SIZE)")
    return values


class BackchannelBatchRequest(InferenceRequest):
    """Up to MAX_BATCH_SIZE utterances, each with a previous one of its own; plain texts have none."""

    utterances: Annotated[
        list[Annotated[BackchannelRequest, BeforeValidator(_from_text)]], BeforeValidator(_within_limit)
    ]


class BackchannelBatchResponse(BaseModel):
    """One prediction per utterance, in order."""

    predictions: list[BackchannelResponse]


class BackchannelSettings(Protocol):
    """What of the settings is looked at."""

    model_threshold: float
    max_batch_size: int


class Latencies:
    """Times of the last thousand answers (ms)."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._count = 0

    def add(self, took_ms: float) -> None:
        self._recent.append(took_ms)
        self._count += 1

    def reset(self) -> None:
        """As if nothing had been answered yet."""
        self._recent.clear()
        self._count = 0

    def summary(self) -> dict[str, float | None]:
        """All answers so far (`count`); of the last thousand the average, percentiles (nearest rank) and maximum."""
        ordered = sorted(self._recent)
        figures: dict[str, float | None] = {"count": self._count, "average_ms": None}
        if ordered:
            figures["average_ms"] = round(sum(ordered) / len(ordered), 3)
        for name, share in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99), ("max_ms", 100)):
            figures[name] = ordered[-(-len(ordered) * share // 100) - 1] if ordered else None
        return figures


class Backchannel(Capability[BackchannelRequest, tuple[str, str], float, BackchannelResponse]):
    """`POST /api/v1/predict` and `/api/v1/predict/batch`.

    `threshold` may be changed while requests run: each answer is decided by the one it names.
    """

    name = "backchannel"
    endpoints: ClassVar[tuple[Endpoint, ...]] = (
        Endpoint(
            path="/api/v1/predict",
            request=BackchannelRequest,
            response=BackchannelResponse,
            summary="Whether an utterance is a backchannel",
            example={"utterance": "mm-hm", "previous_utterance": "So then we turned left at the bridge and"},
        ),
        Endpoint(
            path="/api/v1/predict/batch",
            request=BackchannelBatchRequest,
            response=BackchannelBatchResponse,
            summary="The same of several utterances, each with its own context",
            example={
                "utterances": [
                    {"utterance": "yeah", "previous_utterance": "We deliver within two weeks as a rule."},
                    {"utterance": "yeah but the contract says thirty days", "previous_utterance": "We deliver then."},
                ]
            },
            split=lambda batch: _split(batch),
            join=lambda responses: BackchannelBatchResponse.model_construct(predictions=list(responses)),
            bulk=True,
        ),
    )
    tensors = TensorForm(
        inputs=(Tensor("utterance", "BYTES"), Tensor("previous_utterance", "BYTES", optional=True)),
        outputs=(Tensor("is_backchannel", "BOOL"), Tensor("confidence", "FP32"), Tensor("probability", "FP32")),
        request=BackchannelRequest,
        row=lambda answer: (answer.is_backchannel, answer.confidence, answer.metadata["probabilities"][LABEL]),
    )

    def __init__(self) -> None:
        self.threshold = 0.5
        self.max_batch_size = 32
        self.latencies = Latencies()

    def configure(self, settings: BackchannelSettings) -> None:
        self.threshold = settings.model_threshold
        self.max_batch_size = settings.max_batch_size

    def shortcut(self, request: BackchannelRequest, model: str) -> BackchannelResponse | None:
        """Silence is no signal."""
        if request.utterance.strip():
            return None
        return self._answer(0.0, Meta(model, 0.0, request))

    def prepare(self, request: BackchannelRequest) -> tuple[str, str]:
        return (request.previous_utterance or "").strip(), request.utterance.strip()

    def cost(self, item: tuple[str, str]) -> int:
        return text_cost(item[0] + item[1])

    def run_batch(self, adapter: TextClassifier, items: Sequence[tuple[str, str]]) -> list[float]:
        """The probability that the utterance is a backchannel: label 1 where no label has that name."""
        labels = list(adapter.labels(self.name))
        index = labels.index(LABEL) if LABEL in labels else 1
        return [float(row[index]) for row in probabilities(adapter.classify(items, self.name))]

    def finish(self, output: float, meta: Meta) -> BackchannelResponse:
        self.latencies.add(meta.processing_time_ms)
        return self._answer(output, meta)

    def _answer(self, probability: float, meta: Meta) -> BackchannelResponse:
        threshold = self.threshold  # read once: another request may change it
        decided = probability > threshold
        return BackchannelResponse.model_construct(
            is_backchannel=decided,
            confidence=probability if decided else 1 - probability,
            model_used=meta.model,
            latency_ms=meta.processing_time_ms,
            metadata={
                "threshold": threshold,
                "probabilities": {"other": 1 - probability, LABEL: probability},
                "previous_used": bool((meta.request.previous_utterance or "").strip()),
            },
        )


BACKCHANNEL = Backchannel()


def _split(batch: BackchannelBatchRequest) -> list[BackchannelRequest]:
    common = {"model": batch.model, "keep_alive": batch.keep_alive}
    return [
        each.model_copy(update={key: value for key, value in common.items() if getattr(each, key) is None})
        for each in batch.utterances
    ]
