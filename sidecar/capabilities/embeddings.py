"""Sentence embeddings, in the shape of OpenAI's `POST /v1/embeddings`."""

import base64
import math
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from sidecar.capabilities.base import (
    Capability,
    Endpoint,
    InferenceRequest,
    Meta,
    Tensor,
    TensorForm,
    TextEmbedder,
    finite,
    text_cost,
)
from sidecar.errors import InputError

MAX_INPUTS = 2048
# More than fills any encoder's window; the rest could not be read anyway.
_MAX_CHARACTERS = 32_768
_WINDOW = 512


def _texts(value: object) -> object:
    """One text or several, as a list. Raises ValueError for what OpenAI takes and this cannot, and for emptiness."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError("give a text, or a list of at least one")
    if len(texts) > MAX_INPUTS:
        raise ValueError(f"{len(texts)} texts are more than {MAX_INPUTS}")
    for number, text in enumerate(texts):
        if isinstance(text, int | list):
            raise ValueError("token arrays belong to another model's tokenizer; send the text itself")
        if text == "":
            raise ValueError(f"text {number} is empty")
    return texts


_INPUT_SCHEMA = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_INPUTS}]
}
Texts = Annotated[list[str], BeforeValidator(_texts), WithJsonSchema(_INPUT_SCHEMA)]


class EmbeddingsRequest(InferenceRequest):
    """Up to 2048 texts. Longer than the model's window is truncated. `user` is accepted and not looked at."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="keep the first so many and scale to unit length again; best on models trained for it",
    )
    user: str | None = None


class EmbeddingRequest(InferenceRequest):
    """One text of an EmbeddingsRequest."""

    text: Annotated[str, Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class Embedding(BaseModel):
    """A unit vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model has read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """One embedding per text, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class EmbeddedText(BaseModel):
    """The answer for one text; `join` makes an EmbeddingsResponse of them."""

    embedding: list[float] | str
    tokens: int
    model: str


class Embedded(NamedTuple):
    """What the runner gives: little-endian float32, and the tokens read."""

    vector: bytes
    tokens: int


class Embeddings(Capability[EmbeddingRequest, str, Embedded, EmbeddedText]):
    """`POST /v1/embeddings`."""

    name = "embeddings"
    endpoints: ClassVar[tuple[Endpoint, ...]] = (
        Endpoint(
            path="/v1/embeddings",
            request=EmbeddingsRequest,
            response=EmbeddingsResponse,
            summary="Embeddings of one or several texts, in OpenAI's shape",
            example={"input": ["How do I reset my password?", "I forgot my login."]},
            split=lambda request: _split(request),
            join=lambda responses: _join(responses),
            bulk=True,
        ),
    )
    tensors = TensorForm(
        inputs=(Tensor("text", "BYTES"),),
        outputs=(Tensor("embedding", "FP32", (-1, -1)),),
        request=EmbeddingRequest,
        row=lambda answer: (answer.embedding,),
    )

    def prepare(self, request: EmbeddingRequest) -> str:
        return request.text[:_MAX_CHARACTERS]

    def cost(self, item: str) -> int:
        return text_cost(item, _WINDOW)

    def run_batch(self, adapter: TextEmbedder, items: Sequence[str]) -> list[Embedded]:
        vectors, tokens = adapter.embed(items)
        return [
            Embedded(vector.astype("<f4").tobytes(), int(count))
            for vector, count in zip(finite(vectors), tokens, strict=True)
        ]

    def finish(self, output: Any, meta: Meta) -> EmbeddedText:
        vector, tokens = output
        numbers = array("f", bytes(vector))
        if (wanted := meta.request.dimensions) is not None:
            numbers = _shortened(numbers, wanted, meta.model)
        as_text = meta.request.encoding_format == "base64"
        embedding = base64.b64encode(numbers.tobytes()).decode() if as_text else numbers.tolist()
        return EmbeddedText.model_construct(embedding=embedding, tokens=tokens, model=meta.model)


def _shortened(numbers: "array[float]", dimensions: int, model: str) -> "array[float]":
    if dimensions > len(numbers):
        said = f"dimensions: {model} has {len(numbers)}, {dimensions} were asked for"
        raise InputError(said, field="dimensions")
    kept = numbers[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in kept)) or 1.0
    return array("f", (number / length for number in kept))


def _split(request: EmbeddingsRequest) -> list[EmbeddingRequest]:
    common = request.model_dump(include={"model", "keep_alive", "encoding_format", "dimensions"})
    return [EmbeddingRequest.model_construct(text=text, **common) for text in request.input]


def _join(responses: Sequence[EmbeddedText]) -> EmbeddingsResponse:
    tokens = sum(each.tokens for each in responses)
    return EmbeddingsResponse.model_construct(
        data=[
            Embedding.model_construct(index=number, embedding=each.embedding) for number, each in enumerate(responses)
        ],
        model=responses[0].model,
        usage=Usage.model_construct(prompt_tokens=tokens, total_tokens=tokens),
    )
