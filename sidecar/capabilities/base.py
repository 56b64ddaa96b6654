"""What a capability is: one file, importable in server and runner, no web framework and no ML runtime at module level.

Data flow: server `prepare` → item → wire → runner `run_batch(adapter, items)` → outputs → wire → server `finish`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, Field

RequestT = TypeVar("RequestT", bound=BaseModel)
ResponseT = TypeVar("ResponseT", bound=BaseModel)
ItemT = TypeVar("ItemT")
OutputT = TypeVar("OutputT")


class InferenceRequest(BaseModel):
    """What every request may say besides its content."""

    model: str | None = Field(None, description="answer with this model of the catalogue, not the best one")
    keep_alive: float | str | None = Field(
        None, description='how long the model stays in memory afterwards: seconds, "5m", 0, or -1 for ever'
    )


class Meta(NamedTuple):
    """What `finish` may tell about how the answer came to be."""

    model: str
    processing_time_ms: float


@dataclass(frozen=True)
class Endpoint:
    """One POST route of a capability.

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


class Capability(ABC, Generic[RequestT, ItemT, OutputT, ResponseT]):
    """A thing the sidecar can do. Stateless: one instance serves every request."""

    name: ClassVar[str]
    endpoints: ClassVar[tuple[Endpoint, ...]]

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

    @abstractmethod
    def finish(self, output: OutputT, meta: Meta) -> ResponseT:
        """The response for one output."""


class TextClassifier(Protocol):
    """What an adapter offers to capabilities that classify text."""

    def labels(self, head: str) -> Sequence[str]:
        """Label names of `head`, in logit order."""

    def classify(self, texts: Sequence[str] | Sequence[tuple[str, str]], head: str) -> Any:
        """Logits, float32 array of shape (len(texts), len(labels)). A pair is encoded as two segments."""


def text_cost(text: str, window: int = 256) -> int:
    """Tokens of an English text, estimated from its length (about 4.2 characters a WordPiece), capped by the window."""
    return min(window, 3 + len(text) * 5 // 21)
