"""What a capability is: one file, importable in server and runner, no web framework and no ML runtime at module level.

Data flow: server `prepare` → item → wire → runner `run_batch(adapter, items)` → outputs → wire → server `finish`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, Field, StrictFloat, StrictStr
from typing_extensions import TypedDict  # pydantic wants it rather than that of typing before Python 3.12

from sidecar.errors import InferenceError

RequestT = TypeVar("RequestT", bound=BaseModel)
ResponseT = TypeVar("ResponseT", bound=BaseModel)
ItemT = TypeVar("ItemT")
OutputT = TypeVar("OutputT")


_KEEP_ALIVE = 'how long the model stays in memory afterwards: seconds, "5m", 0, or -1 for ever'
KeepAlive = Annotated[StrictFloat | StrictStr | None, Field(description=_KEEP_ALIVE)]


class InferenceRequest(BaseModel):
    """What every request may say besides its content."""

    model: str | None = Field(None, description="answer with this model of the catalogue, not the best one")
    keep_alive: KeepAlive = None


class Meta(NamedTuple):
    """What `finish` may tell about how the answer came to be."""

    model: str
    processing_time_ms: float
    request: Any = None


@dataclass(frozen=True)
class Endpoint:
    """One POST route of a capability. `{model}` in the path sets the request's `model`.

    A batch route splits its body into single requests, each of which is inferred on its own (so that the batcher mixes
    them with everybody else's), and joins the single responses.
    """

    path: str
    request: type[BaseModel]
    response: type[BaseModel]
    summary: str
    example: dict[str, Any]
    split: Callable[[Any], Sequence[Any]] = field(default=lambda request: (request,))
    join: Callable[[Sequence[Any]], Any] = field(default=lambda responses: responses[0])
    bulk: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor of the Open Inference Protocol. Its first dimension is the batch: each row is one request.

    `datatype` is the protocol's name (BYTES, BOOL, INT64, FP32, …); -1 in `shape` is any length. BYTES are UTF-8 text.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)
    optional: bool = False
    labels: tuple[str, ...] = ()
    """What the columns mean, for the model's metadata."""


@dataclass(frozen=True)
class TensorForm:
    """How a capability is spoken to in tensors, for `/v2/models/{model}/infer`.

    Inputs are named after fields of `request`, of which each row makes one. `row` gives the values of one response in
    the order of `outputs`: a number or text where a row is a scalar, a (nested) sequence where it is an array.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    request: type[InferenceRequest]
    row: Callable[[Any], Sequence[Any]]


class Capability(ABC, Generic[RequestT, ItemT, OutputT, ResponseT]):
    """A thing the sidecar can do. One instance serves every request: it keeps nothing of any of them."""

    name: ClassVar[str]
    endpoints: ClassVar[tuple[Endpoint, ...]]
    addressed: ClassVar[bool] = False
    """Every request names its model: none answers for all, none is loaded beforehand, and having none is no fault."""

    tensors: ClassVar[TensorForm | None] = None
    """None where the capability does not fit into tensors."""

    def configure(self, settings: Any) -> None:
        """In the server, before the first request: take what the settings say."""

    def shortcut(self, request: RequestT, model: str) -> ResponseT | None:
        """The answer that needs no model (blank text, say), or None."""
        return None

    @abstractmethod
    def prepare(self, request: RequestT) -> ItemT:
        """Validate and decode into what the runner gets. Raises InputError. Tokenises nothing."""

    @abstractmethod
    def cost(self, item: ItemT) -> int:
        """Estimated tokens of `item`: the batcher's measure of length, cheap and roughly monotone."""

    @abstractmethod
    def run_batch(self, adapter: Any, items: Sequence[ItemT]) -> list[OutputT]:
        """In the runner: one output per item, in order."""

    def run_stream(self, adapter: Any, item: ItemT) -> Iterator[Any]:
        """In the runner: the output of one item in pieces, each sent as soon as it is made.

        Between two pieces other requests get their turn, and a reader that has gone ends the iterator there. A None is
        such a place in the middle of a long piece, and is not sent.
        """
        yield from self.run_batch(adapter, [item])

    @abstractmethod
    def finish(self, output: OutputT, meta: Meta) -> ResponseT:
        """The response for one output."""


class TextClassifier(Protocol):
    """What an adapter offers to capabilities that classify text."""

    def labels(self, head: str) -> Sequence[str]:
        """Label names of `head`, in logit order."""

    def decision(self, head: str) -> tuple[bool, float | None]:
        """Whether several labels may hold at once, and the probability above which one counts (None: the best one)."""

    def classify(self, texts: Sequence[str | tuple[str, str]], head: str) -> Any:
        """Logits, float32 array of shape (len(texts), len(labels)). A pair is put together as the head wants it."""


class TextEmbedder(Protocol):
    """What an adapter offers to the embeddings capability."""

    def embed(self, texts: Sequence[str]) -> tuple[Any, Any]:
        """Unit vectors, float32 array (len(texts), dimensions); and the tokens read, int array (len(texts),)."""


def probabilities(logits: Any, multi_label: bool = False) -> Any:
    """Softmax over the last axis, or sigmoids where several labels may hold; float64, same shape.

    Raises InferenceError for what gives none.
    """
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    if multi_label:
        return finite(1 / (1 + np.exp(-np.clip(values, -700, 700))))
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return finite(exponentials / exponentials.sum(axis=-1, keepdims=True))


def finite(values: Any) -> Any:
    """The array, if all of it are numbers: an answer without any would look like one. Raises InferenceError."""
    import numpy as np

    if not np.isfinite(values).all():
        raise InferenceError(
            "the model gives no number for this input (NaN): its weights are damaged, or overflow in their precision "
            "(fp16); take them in fp32"
        )
    return values


class LabelScore(TypedDict):
    """One label and its probability, 0 to 1. A dict, not a model: seven of them are made for every answer."""

    label: str
    score: float


def ranked(labels: Sequence[str], row: Any) -> list[tuple[str, float]]:
    """Labels with their probabilities, the likeliest first; ties keep the labels' order."""
    return sorted(zip(labels, map(float, row), strict=True), key=lambda pair: -pair[1])


def text_cost(text: str, window: int = 256) -> int:
    """Tokens of an English text, estimated from its length (about 4.2 characters a WordPiece), capped by the window."""
    return min(window, 3 + len(text) * 5 // 21)
