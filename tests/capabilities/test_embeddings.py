import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.capabilities.base import Meta
from sidecar.capabilities.embeddings import Embeddings, EmbeddingsRequest
from sidecar.errors import InferenceError, InputError
from tests.tiny import unpack

EMBEDDINGS = Embeddings()
ENDPOINT = EMBEDDINGS.endpoints[0]
VECTOR = (np.arange(1, 9) / math.sqrt(204)).astype(np.float32)


class Vectors:
    """An adapter that gives one known vector."""

    def embed(self, texts: Any) -> tuple[Any, Any]:
        return np.tile(VECTOR, (len(texts), 1)), np.array([len(text) for text in texts])


def answer(**fields: Any) -> Any:
    request = EmbeddingsRequest(**fields)
    parts = ENDPOINT.split(request)
    outputs = EMBEDDINGS.run_batch(Vectors(), [EMBEDDINGS.prepare(part) for part in parts])
    metas = [Meta("m", 1.0, part) for part in parts]
    return ENDPOINT.join([EMBEDDINGS.finish(list(o), meta) for o, meta in zip(outputs, metas, strict=True)])


def test_numbers_are_the_floats_themselves_and_usage_is_summed() -> None:
    response = answer(input=["ab", "c"])
    assert [each.index for each in response.data] == [0, 1]
    assert response.data[0].embedding == [float(number) for number in VECTOR]
    assert (response.usage.prompt_tokens, response.usage.total_tokens, response.model) == (3, 3, "m")
    assert response.model_dump()["object"] == "list" and response.model_dump()["data"][0]["object"] == "embedding"


def test_base64_holds_the_same_numbers() -> None:
    coded = answer(input="ab", encoding_format="base64").data[0].embedding
    assert unpack(base64.b64decode(coded)) == [float(number) for number in VECTOR]


def test_fewer_dimensions_have_unit_length_again() -> None:
    short = answer(input="ab", dimensions=3).data[0].embedding
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
    assert np.allclose(short, VECTOR[:3] / np.linalg.norm(VECTOR[:3]))
    assert len(answer(input="ab", dimensions=8).data[0].embedding) == 8
    with pytest.raises(InputError, match="m has 8, 9 were asked for"):
        answer(input="ab", dimensions=9)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "at least one"),
        ("", "text 0 is empty"),
        (["a", ""], "text 1 is empty"),
        ([1, 2], "token arrays"),
        ([[1, 2]], "token arrays"),
        ({"a": 1}, "at least one"),
        (None, "at least one"),
        (["x"] * 2049, "2049 texts are more than 2048"),
    ],
)
def test_what_cannot_be_embedded_is_named(given: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EmbeddingsRequest(input=given)


@pytest.mark.parametrize("wrong", [{"dimensions": 0}, {"encoding_format": "hex"}, {"input": ["a", None]}])
def test_other_fields_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EmbeddingsRequest(**{"input": "a", **wrong})


def test_cost_grows_to_the_window() -> None:
    costs = [EMBEDDINGS.cost("x" * size) for size in (1, 100, 1000, 100_000)]
    assert costs == sorted(costs) and costs[-1] == 512
    assert len(EMBEDDINGS.prepare(ENDPOINT.split(EmbeddingsRequest(input="word " * 100_000))[0])) < 40_000


def test_a_vector_without_numbers_is_no_answer() -> None:
    class Broken:
        def embed(self, texts: Sequence[str]) -> tuple[Any, Any]:
            return np.full((len(texts), 3), np.nan, np.float32), np.ones(len(texts), np.int64)

    with pytest.raises(InferenceError, match="NaN"):
        EMBEDDINGS.run_batch(Broken(), ["x"])
