"""`/v1/embeddings` through OpenAI's own client, on the embedded graph and on models of a hub."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.hub import Hub
from tests.product import Product, until
from tests.tiny import unpack, write_encoder

QUESTIONS = [
    "How do I reset my password?",
    "I forgot my login, can I get a new password?",
    "The soup needs another ten minutes on the stove.",
]
HUB_TOML = """
id = "{id}"
title = "an encoder of the hub"
capabilities = ["embeddings"]
runtime = "onnx"
licence = "MIT"
preference = 5
files = [{{ path = "onnx/model.onnx" }}, {{ path = "config.json" }}, {{ path = "tokenizer.json" }}]

[source]
repo = "tiny/encoder"

[heads.embeddings]
output = "last_hidden_state"
pooling = "{pooling}"
"""


@pytest.fixture
def api(product: Product) -> Iterator[openai.OpenAI]:
    with client(product) as one:
        yield one


def client(product: Product) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key=product.token, max_retries=0)


def vectors(response: Any) -> Any:
    return np.array([each.embedding for each in response.data])


def test_one_text(api: openai.OpenAI) -> None:
    response = api.embeddings.create(model="minilm", input=QUESTIONS[0])
    assert (response.object, response.model, len(response.data)) == ("list", "minilm", 1)
    assert (response.data[0].object, response.data[0].index) == ("embedding", 0)
    assert vectors(response).shape == (1, 384)
    assert np.linalg.norm(vectors(response)) == pytest.approx(1, abs=1e-5)
    assert response.usage.prompt_tokens == response.usage.total_tokens == 9  # with [CLS] and [SEP]


def test_near_sentences_are_nearer(api: openai.OpenAI) -> None:
    near, also_near, far = vectors(api.embeddings.create(model="minilm", input=QUESTIONS))
    assert near @ also_near > 0.6
    assert near @ far < 0.2


def test_float_and_base64_are_the_same(api: openai.OpenAI) -> None:
    # The client asks for base64 unless told otherwise, and decodes it.
    plain = api.embeddings.create(model="minilm", input=QUESTIONS, encoding_format="float")
    coded = api.embeddings.create(model="minilm", input=QUESTIONS)
    assert np.array_equal(vectors(plain).astype(np.float32), vectors(coded).astype(np.float32))
    raw = api.embeddings.create(model="minilm", input=QUESTIONS, encoding_format="base64").data[0].embedding
    assert unpack(base64.b64decode(str(raw))) == plain.data[0].embedding


def test_fewer_dimensions(api: openai.OpenAI) -> None:
    whole = vectors(api.embeddings.create(model="minilm", input=QUESTIONS))
    short = vectors(api.embeddings.create(model="minilm", input=QUESTIONS, dimensions=64))
    assert np.allclose(short, whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True), atol=1e-6)


def test_keep_alive_and_user_are_accepted(api: openai.OpenAI) -> None:
    api.embeddings.create(model="minilm", input="x", user="somebody", extra_body={"keep_alive": "10m"})


@pytest.mark.parametrize(
    "text",
    [" ", "x", "😀", "\x00", "שלום", "\u202egnirts", "word " * 3000, "x" * 100_000, "[MASK] [SEP]"],
)
def test_every_text_has_an_embedding(api: openai.OpenAI, text: str) -> None:
    response = api.embeddings.create(model="minilm", input=text)
    assert np.linalg.norm(vectors(response)) == pytest.approx(1, abs=1e-5)
    assert 2 <= response.usage.prompt_tokens <= 256


def test_many_texts_of_mixed_lengths_keep_their_order(api: openai.OpenAI) -> None:
    texts = [f"number {i} " + "and more " * (i % 40) for i in range(300)]
    together = vectors(api.embeddings.create(model="minilm", input=texts))
    for i in (0, 39, 150, 299):
        alone = vectors(api.embeddings.create(model="minilm", input=texts[i]))[0]
        assert together[i] @ alone > 0.999, i


def test_texts_of_several_clients_at_once(product: Product) -> None:
    with client(product) as api:
        alone = [vectors(api.embeddings.create(model="minilm", input=text))[0] for text in QUESTIONS]
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(api.embeddings.create, model="minilm", input=QUESTIONS[i % 3]) for i in range(24)]
            answers = [each.result() for each in asked]
    for i, answer in enumerate(answers):
        assert vectors(answer)[0] @ alone[i % 3] > 0.999


def refused(api: openai.OpenAI, **arguments: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        api.embeddings.create(**{"model": "minilm", "input": "x", **arguments})
    return caught.value


def test_unknown_models_are_not_found(api: openai.OpenAI) -> None:
    error = refused(api, model="text-embedding-3-small")
    assert isinstance(error, openai.NotFoundError) and (error.code, error.param) == ("model_not_found", "model")
    error = refused(api, model="baseline")
    assert isinstance(error, openai.NotFoundError) and "does not offer embeddings" in error.message


def test_a_model_without_its_files_says_what_to_do(api: openai.OpenAI) -> None:
    error = refused(api, model="bge-small-en-v1.5")
    assert error.status_code == 503 and "models pull bge-small-en-v1.5" in error.message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"input": []}, "at least one"),
        ({"input": ""}, "empty"),
        ({"input": ["x", ""]}, "text 1 is empty"),
        ({"input": [1, 2, 3]}, "token arrays"),
        ({"input": [[1, 2], [3]]}, "token arrays"),
        ({"input": ["x"] * 2049}, "2048"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 385}, "384"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"keep_alive": "soon"}}, "keep_alive"),
    ],
)
def test_bad_requests_are_named(api: openai.OpenAI, arguments: dict[str, Any], told: str) -> None:
    error = refused(api, **arguments)
    assert isinstance(error, openai.BadRequestError) and told in error.message
    assert error.type == "invalid_request_error"
    assert error.param == next(iter(arguments.get("extra_body", arguments)))


def test_broken_json_and_wrong_methods(product: Product) -> None:
    for body in (b"", b"{", b"[]", b'{"input": "x" \\ud800}'):
        answer = product.call("POST", "/v1/embeddings", body)
        assert answer.status == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    wrong = product.call("GET", "/v1/embeddings")
    assert wrong.status == 405 and wrong.json()["error"]["code"] == "method_not_allowed"
    unknown = product.call("POST", "/v1/embeddings", json.dumps({"input": "x" * 2_000_001}).encode())
    assert unknown.status == 413 and unknown.json()["error"]["code"] == "body_too_large"


def test_an_encoder_of_the_hub_is_downloaded_and_pooled(launch: Callable[..., Product], tmp_path: Path) -> None:
    write_encoder(tmp_path / "repo", {"one": [1, 0, 0], "two": [0, 2, 0], "[CLS]": [0, 0, 3]})
    files = {
        str(path.relative_to(tmp_path / "repo").as_posix()): path.read_bytes()
        for path in (tmp_path / "repo").rglob("*")
        if path.is_file()
    }
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for pooling in ("mean", "cls"):
        text = HUB_TOML.format(id=f"tiny-{pooling}", pooling=pooling)
        (folder / f"{pooling}.toml").write_text(text, encoding="utf-8")
    with Hub() as hub:
        hub.add("tiny/encoder", files)
        product = launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url)
        for pooling in ("mean", "cls"):
            product.call("POST", f"/models/tiny-{pooling}/download")
            until(lambda: not product.call("GET", f"/models/tiny-{pooling}").json()["missing"], "downloaded")
        with client(product) as api:
            mean = vectors(api.embeddings.create(model="tiny-mean", input=["one", "two two two two"]))
            first = vectors(api.embeddings.create(model="tiny-cls", input=["one", "two two two two"]))
            listed = {model.id: model.owned_by for model in api.models.list()}
    assert np.allclose(mean, [[1 / 10**0.5, 0, 3 / 10**0.5], [0, 8 / 73**0.5, 3 / 73**0.5]], atol=1e-6)
    assert np.allclose(first, [[0, 0, 1]] * 2, atol=1e-6)
    assert listed["tiny-mean"] == "tiny"
