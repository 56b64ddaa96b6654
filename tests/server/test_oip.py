"""The Open Inference Protocol on the real product, spoken by the unmodified tritonclient."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from sidecar import __version__
from sidecar.capabilities.emotion import LABELS
from tests.product import Product, until, write_fake

TEXTS = ["I am so happy today!", "He is furious with you!", "", "I am terrified of the dark basement"]
SEEN = [b"joy", b"anger", b"neutral", b"fear"]


class Client:
    """tritonclient with the token that a host app has."""

    def __init__(self, product: Product) -> None:
        self.http = triton.InferenceServerClient(f"127.0.0.1:{product.port}")
        self.headers = {"Authorization": f"Bearer {product.token}"}

    def infer(self, model: str, texts: list[str], *, binary: bool = True, **options: Any) -> triton.InferResult:
        tensor = triton.InferInput("text", [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=binary)
        return self.http.infer(model, [tensor], headers=self.headers, **options)


@pytest.fixture
def client(product: Product) -> Iterator[Client]:
    one = Client(product)
    yield one
    one.http.close()


def test_server_and_model_are_live_ready_and_described(client: Client) -> None:
    assert client.http.is_server_live(client.headers) and client.http.is_server_ready(client.headers)
    assert client.http.get_server_metadata(client.headers) == {
        "name": "ml-sidecar",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    for name in ("minilm", "emotion"):
        assert client.http.is_model_ready(name, headers=client.headers)
        assert client.http.is_model_ready(name, "1", headers=client.headers)
        model = client.http.get_model_metadata(name, headers=client.headers)
        assert model["name"] == "minilm" and model["versions"] == ["1"] and model["platform"] == "onnx_onnxv1"
        assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert [(each["name"], each["datatype"], each["shape"]) for each in model["outputs"]] == [
            ("label", "BYTES", [-1]),
            ("confidence", "FP32", [-1]),
            ("scores", "FP32", [-1, 7]),
        ]
        assert model["outputs"][2]["parameters"]["labels"].split(",") == list(LABELS)


@pytest.mark.parametrize("model", ["minilm", "emotion"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_texts_in_json_and_binary(client: Client, model: str, binary_in: bool, binary_out: bool | None) -> None:
    names = ("label", "confidence", "scores")
    wanted = None if binary_out is None else [triton.InferRequestedOutput(name, binary_out) for name in names]
    result = client.infer(model, TEXTS, binary=binary_in, outputs=wanted, request_id="my-7")
    response = result.get_response()
    assert response["id"] == "my-7" and response["model_name"] == "minilm" and response["model_version"] == "1"
    labels = [each if isinstance(each, bytes) else each.encode() for each in result.as_numpy("label").tolist()]
    assert labels == SEEN
    scores, confidence = result.as_numpy("scores"), result.as_numpy("confidence")
    assert scores.shape == (4, 7) and scores.dtype == confidence.dtype == np.float32
    assert np.allclose(scores.sum(axis=1), 1.0, atol=1e-4) and np.allclose(scores.max(axis=1), confidence)
    assert [LABELS[index].encode() for index in scores.argmax(axis=1)] == SEEN
    assert confidence[2] == 1.0, "blank text is neutral, as on the capability's own route"


def test_the_answers_are_those_of_the_capability_route(client: Client, product: Product) -> None:
    texts = [f"I feel {word} about the {thing}" for word in ("awful", "great") for thing in ("dog", "exam", "letter")]
    result = client.infer("emotion", texts)
    own = [product.emotion(text).json() for text in texts]
    assert result.as_numpy("label").tolist() == [each["emotion"].encode() for each in own]
    assert np.allclose(result.as_numpy("confidence"), [each["confidence"] for each in own], atol=0.02)


@pytest.mark.parametrize("count", [0, 1, 300, 2000])
def test_batches_of_any_size(client: Client, count: int) -> None:
    texts = [TEXTS[index % 2] for index in range(count)]
    result = client.infer("emotion", texts)
    assert result.as_numpy("label").tolist() == [SEEN[index % 2] for index in range(count)]
    assert result.as_numpy("scores").shape == (count, 7)


def test_only_the_asked_outputs_come_in_that_order(client: Client) -> None:
    wanted = [triton.InferRequestedOutput("scores", True), triton.InferRequestedOutput("label", False)]
    response = client.infer("emotion", ["Wonderful!"], outputs=wanted).get_response()
    assert [output["name"] for output in response["outputs"]] == ["scores", "label"]
    assert "data" not in response["outputs"][0] and response["outputs"][1]["data"] == ["joy"]


def test_versions_columns_and_compressed_bodies(client: Client) -> None:
    tensor = triton.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["So happy!"], ["So sad."]], dtype=np.object_))
    for packing in (None, "gzip", "deflate"):
        result = client.http.infer(
            "minilm", [tensor], model_version="1", headers=client.headers, request_compression_algorithm=packing
        )
        assert result.as_numpy("label").tolist() == [b"joy", b"sadness"]


def test_parameters_choose_capability_and_keep_alive(client: Client) -> None:
    options: dict[str, Any] = {"capability": "emotion", "keep_alive": "5m"}
    assert client.infer("minilm", ["So happy!"], parameters=options).as_numpy("label")[0] == b"joy"
    with pytest.raises(InferenceServerException, match="does not offer asr"):
        client.infer("minilm", ["x"], parameters={"capability": "asr"})
    with pytest.raises(InferenceServerException, match="keep_alive"):
        client.infer("minilm", ["x"], parameters={"keep_alive": "soon"})


def test_a_capability_in_the_path_is_not_contradicted(client: Client) -> None:
    assert client.infer("emotion", ["x"], parameters={"capability": "emotion"}).get_response()["model_name"] == "minilm"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("emotion", ["x"], parameters={"capability": "backchannel"})
    assert caught.value.status() == "400"
    assert "'emotion'" in str(caught.value) and "'backchannel'" in str(caught.value)
    with pytest.raises(InferenceServerException, match="'asr'"):
        client.http.get_model_metadata("emotion", headers=client.headers, query_params={"capability": "asr"})
    with pytest.raises(InferenceServerException) as caught:
        client.infer("minilm", ["x"], parameters={"capability": ["emotion"]})
    assert caught.value.status() == "400" and "no name of a capability" in str(caught.value)


def test_async_requests(client: Client, product: Product) -> None:
    http = triton.InferenceServerClient(f"127.0.0.1:{product.port}", concurrency=8)
    pending = []
    for text in TEXTS * 5:
        tensor = triton.InferInput("text", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text], dtype=np.object_))
        pending.append(http.async_infer("emotion", [tensor], headers=client.headers))
    assert [each.get_result().as_numpy("label")[0] for each in pending] == SEEN * 5
    http.close()


@pytest.mark.parametrize(
    ("model", "version", "status", "named"),
    [
        ("nothing", "", "404", "nothing"),
        ("minilm", "2", "404", "version"),
    ],
)
def test_unknown_models_are_named(client: Client, model: str, version: str, status: str, named: str) -> None:
    for call in (client.http.get_model_metadata, lambda *args, **kw: client.infer(model, ["x"], model_version=version)):
        with pytest.raises(InferenceServerException, match=named) as caught:
            call(model, version, headers=client.headers)
        assert caught.value.status() == status
    assert not client.http.is_model_ready(model, version, headers=client.headers)


def test_a_capability_without_tensors_says_what_to_use(product: Product) -> None:
    answer = product.call("GET", "/v2/models/tts")
    assert answer.status == 422 and "use its own routes" in answer.json()["error"]


def test_a_model_without_its_files_is_not_ready_and_says_the_cure(client: Client) -> None:
    assert not client.http.is_model_ready("distilroberta-emotion-onnx", headers=client.headers)
    assert client.http.get_model_metadata("distilroberta-emotion-onnx", headers=client.headers)["inputs"]
    with pytest.raises(InferenceServerException, match="models pull distilroberta-emotion-onnx") as caught:
        client.infer("distilroberta-emotion-onnx", ["x"])
    assert caught.value.status() == "503"


def test_bad_tensors_are_named(client: Client) -> None:
    wrong_name = triton.InferInput("txt", [1], "BYTES")
    wrong_name.set_data_from_numpy(np.array(["x"], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="'txt' is none of text") as caught:
        client.http.infer("emotion", [wrong_name], headers=client.headers)
    assert caught.value.status() == "422"
    wrong_type = triton.InferInput("text", [1], "FP32")
    wrong_type.set_data_from_numpy(np.array([1], dtype=np.float32))
    with pytest.raises(InferenceServerException, match="is BYTES, got FP32"):
        client.http.infer("emotion", [wrong_type], headers=client.headers)
    with pytest.raises(InferenceServerException, match="'logits' is none of label, confidence, scores"):
        client.infer("emotion", ["x"], outputs=[triton.InferRequestedOutput("logits")])
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        client.infer("emotion", ["x"], outputs=[triton.InferRequestedOutput("scores", class_count=3)])
    with pytest.raises(InferenceServerException, match="4096"):
        client.infer("emotion", ["x"] * 4097)


def test_the_token_is_wanted_here_too(product: Product) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{product.port}") as http:
        assert not http.is_server_ready()
        with pytest.raises(InferenceServerException, match="token missing or wrong") as caught:
            http.get_server_metadata()
        assert caught.value.status() == "401"


def post(product: Product, body: bytes, path: str = "/v2/models/emotion/infer", **headers: str) -> Any:
    return product.call("POST", path, body, headers={"Authorization": f"Bearer {product.token}", **headers})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"\x00", {}, 400),
        (b"{}", {}, 422),
        (b"[]", {}, 422),
        (b'{"inputs": []}', {}, 422),
        (b'{"inputs": [], "id": 7}', {}, 422),
        (b"[" * 200_000, {}, 422),
        (b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ' + b"[" * 200_000, {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "99"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "9" * 5000}, 400),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"{}" * 99)[:-9], {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b" " * 20_000_000, 9), {"Content-Encoding": "gzip"}, 413),
        (b"x" * 3_000_000, {}, 413),
    ],
)
def test_bad_bodies_are_answered_in_the_protocols_form(
    product: Product, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = post(product, body, **headers)
    assert answer.status == status, answer.body
    assert set(answer.json()) == {"error"} and answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"


def test_unknown_paths_and_methods_too(product: Product) -> None:
    assert set(product.call("GET", "/v2/nothing").json()) == {"error"}
    wrong = product.call("GET", "/v2/models/emotion/infer")
    assert wrong.status == 405 and set(wrong.json()) == {"error"}
    assert "detail" in product.call("GET", "/v22").json(), "another path keeps the common form"


def test_readiness_follows_the_models(launch_fake: Callable[..., Product], tmp_path: Path) -> None:
    product = launch_fake(load=f"until:{tmp_path}/go", wait=False)
    product.wait("loading")
    client = Client(product)
    assert client.http.is_server_live(client.headers)
    assert not client.http.is_server_ready(client.headers)
    assert not client.http.is_model_ready("fake", headers=client.headers)
    not_yet = product.call("GET", "/v2/health/ready")
    assert not_yet.status == 503 and not_yet.json() == {"live": True, "ready": False}
    (tmp_path / "go").touch()
    until(lambda: client.http.is_model_ready("emotion", headers=client.headers), "loaded")
    assert client.http.is_server_ready(client.headers)
    product.call("POST", "/models/fake/unload")
    assert client.http.is_model_ready("fake", headers=client.headers), "it comes back on demand"
    client.http.close()


def test_a_model_that_cannot_load_is_never_ready(launch_fake: Callable[..., Product]) -> None:
    product = launch_fake(load="fail")
    client = Client(product)
    assert not client.http.is_model_ready("fake", headers=client.headers)
    with pytest.raises(InferenceServerException, match="told to fail") as caught:
        client.infer("fake", ["x"])
    assert caught.value.status() == "503"
    assert client.infer("emotion", ["x"]).get_response()["model_name"] == "minilm"
    until(lambda: client.http.is_server_ready(client.headers), "the next best answers for it")
    client.http.close()


def test_a_pinned_model_answers_all_rows(launch: Callable[..., Product], tmp_path: Path) -> None:
    folder = write_fake(tmp_path / "catalogue", preference=-5)
    product = launch(SIDECAR_CATALOGUE=str(folder))
    client = Client(product)
    texts = ["x" * length for length in range(1, 40)]
    result = client.infer("fake", texts)
    assert result.get_response()["model_name"] == "fake"
    assert result.as_numpy("label").tolist() == [LABELS[len(text) % 7].encode() for text in texts]
    assert client.infer("emotion", texts).get_response()["model_name"] == "minilm"
    client.http.close()


def test_openapi_has_an_example(product: Product) -> None:
    operation = product.call("GET", "/openapi.json").json()["paths"]["/v2/models/{model}/infer"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = post(product, json.dumps(example).encode())
    assert answer.json()["outputs"][0]["data"] == ["joy", "anger"]


def test_other_capabilities_of_a_model_are_chosen_by_name(client: Client) -> None:
    columns = {
        "utterance": ["okay", "okay"],
        "previous_utterance": ["and then we turned", "Can you hold for a minute?"],
    }
    inputs = []
    for name, texts in columns.items():
        inputs.append(triton.InferInput(name, [2], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(texts, dtype=np.object_))
    result = client.http.infer("minilm", inputs, headers=client.headers, parameters={"capability": "backchannel"})
    assert result.as_numpy("is_backchannel").tolist() == [True, False]
    assert (result.as_numpy("confidence") > 0.5).all() and (result.as_numpy("probability") < 1).all()
    vectors = client.infer("embeddings", TEXTS[:2]).as_numpy("embedding")
    assert vectors.shape == (2, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def column(name: str, values: list[str]) -> triton.InferInput:
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
    return tensor


def test_every_capability_of_a_model(client: Client, product: Product) -> None:
    for name, outputs in (("backchannel", "is_backchannel"), ("embeddings", "embedding")):
        described = client.http.get_model_metadata("minilm", headers=client.headers, query_params={"capability": name})
        assert described == client.http.get_model_metadata(name, headers=client.headers)
        assert described["outputs"][0]["name"] == outputs
    utterances, before = ["mm-hm", "I sold the house in March."], ["So I went there,", "What did you do?"]
    inputs = [column("utterance", utterances), column("previous_utterance", before)]
    result = client.http.infer("backchannel", inputs, headers=client.headers)
    assert result.as_numpy("is_backchannel").tolist() == [True, False]
    alone = client.http.infer("backchannel", inputs[:1], headers=client.headers)
    assert alone.as_numpy("is_backchannel").shape == (2,), "the previous utterance may be left out"
    vectors = client.infer("minilm", ["a dog", "a puppy", "tax law"], parameters={"capability": "embeddings"})
    matrix = vectors.as_numpy("embedding")
    own = product.call("POST", "/v1/embeddings", {"model": "minilm", "input": "a dog"}).json()["data"][0]["embedding"]
    assert matrix.shape == (3, 384) and np.allclose(matrix[0], own, atol=0.05)
    assert matrix[0] @ matrix[1] > matrix[0] @ matrix[2]


def test_inputs_that_differ_in_rows(client: Client) -> None:
    inputs = [column("utterance", ["yes", "no"]), column("previous_utterance", ["What?"])]
    with pytest.raises(InferenceServerException, match="differ in rows"):
        client.http.infer("backchannel", inputs, headers=client.headers)
    with pytest.raises(InferenceServerException, match="'utterance' is missing"):
        client.http.infer("backchannel", inputs[1:], headers=client.headers)
    with pytest.raises(InferenceServerException, match="utterance"):
        client.http.infer("backchannel", [column("utterance", ["x" * 600])], headers=client.headers)
