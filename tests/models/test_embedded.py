"""The embedded model as shipped: the committed files, their quality on the held-out sentences, and their behaviour."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from sidecar.catalogue.catalogue import BUILT_IN, ModelSpec, read_spec

DATA = BUILT_IN.parent / "build" / "data"
LARGEST_FOLDER_BYTES = 35_000_000

# A little under what the model card reports.
LEAST_EMOTION_ACCURACY = 0.93
LEAST_EMOTION_RECALL = 0.84
LEAST_BACKCHANNEL_ACCURACY = 0.96

Array = npt.NDArray[Any]
Text = str | tuple[str, str]


class Embedded:
    """The graph with the branch switched off that is not asked for."""

    def __init__(self, spec: ModelSpec) -> None:
        self._tokenizer = Tokenizer.from_file(str(spec.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(spec.window)
        self._tokenizer.enable_padding()
        options = ort.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # it warns that the switches are no constants, which is what they are for
        graph = str(spec.folder / "minilm.onnx")
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, texts: list[Text], output: str, batch: int = 32) -> Array:
        parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        unused = "with_labels" if output == "embedding" else "with_embedding"
        return np.concatenate([self.run_all(part, [output], **{unused: False})[0] for part in parts])

    def run_all(self, texts: list[Text], outputs: list[str], **switches: bool) -> list[Array]:
        encodings = self._tokenizer.encode_batch(texts)
        feeds = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
        }
        feeds |= {name: np.array(value) for name, value in switches.items()}
        return [np.asarray(value) for value in self.session.run(outputs, feeds)]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return read_spec(BUILT_IN / "minilm.toml")


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Embedded:
    return Embedded(spec)


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def emotion_texts() -> list[Text]:
    return [row["text"] for row in rows("emotion_test.tsv")]


def pairs() -> list[Text]:
    return [(row["previous"], row["utterance"]) for row in rows("backchannel_test.tsv")]


def test_the_folder_is_small_and_holds_only_what_is_known(spec: ModelSpec) -> None:
    found = {path.name: path.stat().st_size for path in spec.folder.iterdir()}
    assert set(found) == {"README.md", *(file.path for file in spec.files)}
    assert sum(found.values()) <= LARGEST_FOLDER_BYTES


def test_files_are_those_the_catalogue_names(spec: ModelSpec) -> None:
    for file in spec.files:
        path: Path = spec.folder / file.path
        assert path.stat().st_size == file.size
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256, file.path


def test_inputs_and_outputs_have_the_documented_names_types_and_shapes(model: Embedded, spec: ModelSpec) -> None:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert [(node.name, node.type) for node in model.session.get_inputs()] == [(n, "tensor(int64)") for n in names]
    switches = {node.name: node.type for node in model.session.get_overridable_initializers()}
    assert switches == {"with_embedding": "tensor(bool)", "with_labels": "tensor(bool)"}
    outputs = {node.name: (node.type, node.shape[-1]) for node in model.session.get_outputs()}
    heads = {head.output: ("tensor(float)", len(head.labels)) for head in spec.heads.values()}
    assert outputs == heads | {"embedding": ("tensor(float)", 384)}


def test_emotion_accuracy_on_the_held_out_sentences(model: Embedded, spec: ModelSpec) -> None:
    labels = spec.heads["emotion"].labels
    truth = np.array([labels.index(row["label"]) for row in rows("emotion_test.tsv")])
    right = model.run(emotion_texts(), "emotion_logits").argmax(axis=1) == truth
    assert right.mean() >= LEAST_EMOTION_ACCURACY
    for number, label in enumerate(labels):
        assert right[truth == number].mean() >= LEAST_EMOTION_RECALL, label


def test_backchannel_accuracy_on_the_held_out_pairs(model: Embedded) -> None:
    truth = np.array([int(row["label"]) for row in rows("backchannel_test.tsv")])
    right = model.run(pairs(), "backchannel_logits").argmax(axis=1) == truth
    assert right.mean() >= LEAST_BACKCHANNEL_ACCURACY


@pytest.mark.parametrize(
    ("previous", "utterance", "expected"),
    [
        ("so then we turned left at the bridge and", "okay", 1),
        ("Can you hold for a minute?", "okay", 0),
        ("We deliver within two weeks as a rule.", "yeah", 1),
        ("We deliver within two weeks as a rule.", "yeah but the contract says thirty days", 0),
        ("", "mm-hm", 1),
        ("", "I'd like to book a table", 0),
    ],
)
def test_the_previous_utterance_decides(model: Embedded, previous: str, utterance: str, expected: int) -> None:
    assert model.run([(previous, utterance)], "backchannel_logits").argmax() == expected


def test_embeddings_have_unit_length_and_put_near_sentences_nearer(model: Embedded) -> None:
    near, also_near, far = model.run(
        [
            "How do I reset my password?",
            "I forgot my login, can I get a new password?",
            "The soup needs another ten minutes on the stove.",
        ],
        "embedding",
    )
    for vector in (near, also_near, far):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert near @ also_near > 0.6
    assert near @ far < 0.2


@pytest.mark.parametrize("output", ["emotion_logits", "embedding"])
def test_a_result_does_not_depend_on_what_shares_the_batch(model: Embedded, output: str) -> None:
    texts = emotion_texts()[::4]
    alone = model.run(texts, output, batch=1)
    together = model.run(texts, output, batch=32)
    # A value on the border of two int8 steps may round either way, no more.
    assert np.abs(alone - together).max() < (0.1 if output == "emotion_logits" else 0.02)
    assert np.abs(alone - together).mean() < 1e-3


def test_padding_changes_no_label(model: Embedded) -> None:
    long = "and then we went on to the next town " * 20
    texts = emotion_texts()[::8]
    alone = model.run(texts, "emotion_logits", batch=1)
    padded = np.array([model.run([text, long], "emotion_logits")[0] for text in texts])
    assert (alone.argmax(axis=1) == padded.argmax(axis=1)).mean() >= 0.985


@pytest.mark.parametrize("text", ["", " ", "a", "🎉", "\u200f\u05e9\u05dc\u05d5\u05dd", "word " * 2000, "\x00"])
def test_odd_texts_give_finite_numbers(model: Embedded, spec: ModelSpec, text: str) -> None:
    for output in ("embedding", *(head.output for head in spec.heads.values())):
        assert np.isfinite(model.run([text], output)).all()


def test_all_outputs_at_once_equal_those_asked_for_singly(model: Embedded) -> None:
    texts: list[Text] = ["They sang for me and I could not stop smiling.", "Platform two."]
    names = [node.name for node in model.session.get_outputs()]
    for name, value in zip(names, model.run_all(texts, names), strict=True):
        assert np.allclose(value, model.run(texts, name), atol=1e-6)


def test_a_branch_that_is_switched_off_answers_nothing(model: Embedded) -> None:
    names = ["embedding", "emotion_logits", "backchannel_logits"]
    embedding, emotion, backchannel = model.run_all(["hello", "you"], names, with_labels=False)
    assert np.isfinite(embedding).all()
    assert np.isnan(emotion).all() and emotion.shape == (2, 7)
    assert np.isnan(backchannel).all() and backchannel.shape == (2, 2)
    embedding, emotion, _ = model.run_all(["hello", "you"], names, with_embedding=False)
    assert np.isnan(embedding).all() and embedding.shape == (2, 384)
    assert np.isfinite(emotion).all()
