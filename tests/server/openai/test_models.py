"""`GET /v1/models` through OpenAI's own client."""

import openai
import pytest

from tests.product import Product


def client(product: Product) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key=product.token, max_retries=0)


def test_what_can_answer_is_listed(product: Product) -> None:
    with client(product) as api:
        listed = {model.id: model for model in api.models.list()}
        assert "minilm" in listed and "bge-small-en-v1.5" not in listed
        assert listed["minilm"].object == "model" and listed["minilm"].created > 0
        assert api.models.retrieve("minilm") == listed["minilm"]


def test_what_cannot_answer_is_not_found(product: Product) -> None:
    with client(product) as api:
        for name in ("gpt-9", "bge-small-en-v1.5"):
            with pytest.raises(openai.NotFoundError) as caught:
                api.models.retrieve(name)
            assert caught.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error(product: Product) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{product.port}/v1", api_key="sk-wrong", max_retries=0) as api:
        with pytest.raises(openai.AuthenticationError) as caught:
            api.models.list()
        assert caught.value.code == "invalid_api_key"
