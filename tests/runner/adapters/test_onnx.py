"""The ONNX adapter on the embedded model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.catalogue.catalogue import BUILT_IN, Catalogue, ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import make_adapter

SPEC = Catalogue([BUILT_IN]).get("minilm")


def loaded(spec: ModelSpec) -> Any:
    adapter: Any = make_adapter(spec, threads=1)
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


def test_missing_files_and_wrong_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"minilm\.onnx"):
        loaded(SPEC.model_copy(update={"folder": tmp_path}))
    head = SPEC.heads["emotion"].model_copy(update={"labels": ("yes", "no")})
    with pytest.raises(ModelLoadError, match="'emotion' wants 'emotion_logits' with 2 labels"):
        loaded(SPEC.model_copy(update={"heads": {"emotion": head}}))
