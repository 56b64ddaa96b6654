"""The ONNX adapter on the embedded model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sidecar.catalogue.catalogue import BUILT_IN, Catalogue, Head, ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import make_adapter
from tests.tiny import write_classifier, write_encoder

SPEC = Catalogue([BUILT_IN]).get("minilm")


def loaded(spec: ModelSpec) -> Any:
    adapter: Any = make_adapter(spec, threads=1, device="cpu")
    adapter.load(lambda item, done, total, unit: None)
    return adapter


def test_logits_have_the_shape_of_the_head() -> None:
    adapter = loaded(SPEC)
    logits = adapter.classify(["I am so happy today!", "x", "a much longer text " * 30], "emotion")
    assert logits.shape == (3, len(SPEC.heads["emotion"].labels)) and logits.dtype == np.float32
    pairs = adapter.classify([("and then he left", "mm-hm"), ("", "hello")], "backchannel")
    assert pairs.shape == (2, 2)


def test_the_window_truncates() -> None:
    adapter = loaded(SPEC)
    long = "word " * 3000
    assert np.allclose(adapter.classify([long], "emotion"), adapter.classify([long + "ending"], "emotion"), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({}, 32),
        ({"max_position_embeddings": 16}, 16),
        ({"max_position_embeddings": 18, "model_type": "roberta", "pad_token_id": 1}, 16),
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, 32),
        ({"max_position_embeddings": -1}, 32),
        ({"max_position_embeddings": "many"}, 32),
    ],
)
def test_the_position_table_truncates_too(tmp_path: Path, config: dict[str, Any], read: int) -> None:
    write_classifier(tmp_path, {"word": [1, 0], "end": [0, 1]}, ["a", "b"], **config)
    adapter = tiny(tmp_path, "classify", {}, "model.onnx", "tokenizer.json", window=32)
    words = read - 2
    logits = adapter.classify(["word " * words, "word " * (words - 1) + "end", "word " * words + "end"], "classify")
    assert logits.tolist() == [[words, 0], [words - 1, 1], [words, 0]]


def test_a_model_that_gives_no_numbers_is_not_loaded(tmp_path: Path) -> None:
    write_classifier(tmp_path, {"[CLS]": [float("nan"), 0]}, ["a", "b"])
    with pytest.raises(ModelLoadError, match="gives no numbers"):
        tiny(tmp_path, "classify", {}, "model.onnx", "tokenizer.json")


def test_missing_files_and_wrong_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"minilm\.onnx"):
        loaded(SPEC.model_copy(update={"folder": tmp_path}))
    head = SPEC.heads["emotion"].model_copy(update={"labels": ("yes", "no")})
    with pytest.raises(ModelLoadError, match="'emotion' wants 'emotion_logits' with 2 labels"):
        loaded(SPEC.model_copy(update={"heads": {**SPEC.heads, "emotion": head}}))
    absent = SPEC.heads["emotion"].model_copy(update={"output": "nothing"})
    with pytest.raises(ModelLoadError, match="'emotion' wants 'nothing'"):
        loaded(SPEC.model_copy(update={"heads": {**SPEC.heads, "emotion": absent}}))
    with pytest.raises(ModelLoadError, match="lacks a head for backchannel, embeddings"):
        loaded(SPEC.model_copy(update={"heads": {"emotion": SPEC.heads["emotion"]}}))
    without = tuple(file for file in SPEC.files if not file.path.endswith(".onnx"))
    with pytest.raises(ModelLoadError, match=r"'minilm' names no \.onnx file"):
        loaded(SPEC.model_copy(update={"files": without}))
    pooled = SPEC.heads["embeddings"].model_copy(update={"pooling": "mean"})
    with pytest.raises(ModelLoadError, match="pooling 'mean' needs 3 axes"):
        loaded(SPEC.model_copy(update={"heads": {**SPEC.heads, "embeddings": pooled}}))


def tiny(folder: Path, capability: str, head: dict[str, Any], *files: str, window: int = 512) -> Any:
    """The adapter of a tiny model."""
    values = {"id": "tiny", "title": "t", "capabilities": [capability], "runtime": "onnx", "licence": "MIT"}
    values |= {
        "folder": folder,
        "files": [{"path": path} for path in files],
        "heads": {capability: head},
        "window": window,
    }
    return loaded(ModelSpec.model_validate(values))


ROWS = {"one": [1, 0, 0], "two": [0, 2, 0], "[CLS]": [0, 0, 3]}


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        # [CLS] one [SEP]: the mean of (0,0,3), (1,0,0), (0,0,0); padding counts for nothing
        ("mean", [[1 / 10**0.5, 0, 3 / 10**0.5], [0, 8 / 73**0.5, 3 / 73**0.5]]),
        ("cls", [[0, 0, 1], [0, 0, 1]]),
    ],
)
def test_pooling_over_token_vectors(tmp_path: Path, pooling: str, expected: list[list[float]]) -> None:
    write_encoder(tmp_path, ROWS)
    head = {"output": "last_hidden_state", "pooling": pooling}
    adapter = tiny(tmp_path, "embeddings", head, "onnx/model.onnx", "tokenizer.json")
    vectors, tokens = adapter.embed(["one", "two two two two"])
    assert vectors.dtype == np.float32 and np.allclose(vectors, expected, atol=1e-6)
    assert tokens.tolist() == [3, 6]
    assert np.allclose(adapter.embed(["one"])[0], expected[:1], atol=1e-6)


def test_the_embedded_graph_gives_unit_vectors_and_counts_tokens() -> None:
    vectors, tokens = loaded(SPEC).embed(["hello world", "x"])
    assert vectors.shape == (2, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert tokens.tolist() == [4, 3]


def test_a_template_puts_pairs_together(tmp_path: Path) -> None:
    # The first logit counts words that are known (lower case), the second [SEP] tokens.
    write_classifier(tmp_path, {"yes": [1, 0], "so": [1, 0], "[SEP]": [0, 1]})
    head = {
        "labels": ["other", "backchannel"],
        "template": "{text} [SEP] {text_pair}",
        "template_alone": "{text_pair}",
        "lower": True,
    }
    adapter = tiny(tmp_path, "classify", head, "model.onnx", "tokenizer.json")
    assert adapter.classify([("SO", "Yes"), ("", "YES"), ("{text}", "yes {0}")], "classify").tolist() == [
        [2, 2],
        [1, 1],
        [1, 2],
    ]


def test_without_a_template_a_pair_is_two_segments(tmp_path: Path) -> None:
    write_classifier(tmp_path, {"yes": [1, 0], "[SEP]": [0, 1]})
    adapter = tiny(tmp_path, "classify", {"labels": ["a", "b"]}, "model.onnx", "tokenizer.json")
    assert adapter.classify([("yes", "yes"), "yes", ("", "yes")], "classify").tolist() == [[2, 2], [1, 1], [1, 2]]
    swapped = {"labels": ["a", "b"], "template": ["{text_pair}", "was: {text}"]}
    adapter = tiny(tmp_path, "classify", swapped, "model.onnx", "tokenizer.json")
    assert adapter.classify([("yes", "no")], "classify").tolist() == [[1, 2]]


def test_labels_and_decision_come_from_the_config_where_the_toml_is_silent(tmp_path: Path) -> None:
    rows = {"yes": [1, 0, 0]}
    write_classifier(tmp_path, rows, ["a", "b", "c"], problem_type="multi_label_classification")
    adapter = tiny(tmp_path, "classify", {}, "model.onnx", "tokenizer.json")
    assert adapter.labels("classify") == ("a", "b", "c") and adapter.decision("classify") == (True, 0.5)
    said = {"labels": ["x", "y", "z"], "multi_label": False, "threshold": 0.7}
    adapter = tiny(tmp_path, "classify", said, "model.onnx", "tokenizer.json")
    assert adapter.labels("classify") == ("x", "y", "z") and adapter.decision("classify") == (False, 0.7)


@pytest.mark.parametrize("config", ["{}", '{"id2label": {"1": "a"}}', "[]", '{"id2label": {}}'])
def test_nobody_names_the_labels(tmp_path: Path, config: str) -> None:
    write_classifier(tmp_path, {"yes": [1, 0]})
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelLoadError, match="nobody names the labels of head 'classify'"):
        tiny(tmp_path, "classify", {}, "model.onnx", "tokenizer.json")


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    write_classifier(tmp_path, {"yes": [1, 0]})
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        tiny(tmp_path, "classify", {}, "model.onnx", "tokenizer.json")


@pytest.mark.parametrize("template", ["{previous}", "{text", "{text!r}", "{text:>9}", "{}", "{text.__class__}"])
def test_a_template_with_anything_else_in_braces_is_refused(template: str) -> None:
    with pytest.raises(ValidationError):
        Head(template=template)
