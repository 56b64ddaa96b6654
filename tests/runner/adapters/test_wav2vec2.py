"""wav2vec 2.0 classifiers with random weights in the real formats: ONNX here, torch in its profile's environment."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import wire
from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters.wav2vec2 import Wav2Vec2Adapter
from tests.runner.adapters.test_torch import Runner
from tests.sounding import LABELS, SECONDS, clip, make_listener
from tests.torch_profile import torch_python


@pytest.fixture(scope="module")
def python() -> Path:
    return torch_python()


@pytest.fixture(scope="module")
def exported(python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """A folder with model.onnx and with safetensors, and what transformers says of the clips."""
    folder = tmp_path_factory.mktemp("wav2vec2") / "exported"
    return folder, make_listener(python, folder, onnx=True, seconds=SECONDS)


def spec(folder: Path, *files: str, pickles: tuple[str, ...] = (), **values: Any) -> ModelSpec:
    named = [{"path": name, "pickle": name in pickles} for name in (*files, *pickles)]
    entry = {"id": "tiny", "title": "t", "capabilities": ["speech_emotion"], "runtime": "wav2vec2", "licence": "MIT"}
    return ModelSpec.model_validate(
        {**entry, "folder": folder, "files": named, "heads": {"speech_emotion": {}}, **values}
    )


def onnx(folder: Path, **values: Any) -> Wav2Vec2Adapter:
    adapter = Wav2Vec2Adapter(spec(folder, "model.onnx", "config.json", **values), 1, "cpu")
    adapter.load(lambda *_: None)
    return adapter


def changed(folder: Path, to: Path, name: str, **values: Any) -> Path:
    """A copy of the model in which a JSON file says something else."""
    shutil.copytree(folder, to)
    told = json.loads((to / name).read_text(encoding="utf-8"))
    (to / name).write_text(json.dumps({**told, **values}), encoding="utf-8")
    return to


def test_onnx_answers_as_transformers_does(exported: tuple[Path, list[list[float]]]) -> None:
    folder, expected = exported
    adapter = onnx(folder)
    assert adapter.labels("speech_emotion") == LABELS and adapter.device == "cpu"
    for seconds, row in zip(SECONDS, expected, strict=True):
        found = adapter.listen(clip(seconds), "speech_emotion")
        assert found.dtype == np.float32 and found.sum() == pytest.approx(1, abs=1e-5)
        assert found == pytest.approx(row, abs=1e-4)


def test_the_clips_are_not_all_the_same_to_it(exported: tuple[Path, list[list[float]]]) -> None:
    assert np.ptp(exported[1], axis=0).max() > 0.01


def test_whether_it_is_normalised_the_file_says(exported: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    folder, expected = exported
    bare = onnx(changed(folder, tmp_path / "bare", "preprocessor_config.json", do_normalize=False))
    quiet = clip(SECONDS[0]) * np.float32(0.05)
    assert onnx(folder).listen(quiet, "speech_emotion") == pytest.approx(expected[0], abs=1e-3)
    assert bare.listen(quiet, "speech_emotion") != pytest.approx(expected[0], abs=1e-3)


def test_long_recordings_are_heard_in_windows(exported: tuple[Path, list[list[float]]]) -> None:
    folder, _ = exported
    whole, halves = onnx(folder), onnx(folder, options={"window_s": 1.0})
    samples = clip(2.0)
    parts = [whole.listen(part, "speech_emotion") for part in np.array_split(samples, 2)]
    assert halves.listen(samples, "speech_emotion") == pytest.approx(np.mean(parts, axis=0), abs=1e-4)


@pytest.mark.parametrize("samples", [np.zeros(1, np.float32), np.zeros(16_000, np.float32)])
def test_a_click_and_silence_have_an_answer(exported: tuple[Path, list[list[float]]], samples: Any) -> None:
    found = onnx(exported[0]).listen(samples, "speech_emotion")
    assert np.isfinite(found).all() and found.sum() == pytest.approx(1, abs=1e-5)


def test_another_rate_is_refused(exported: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    folder = changed(exported[0], tmp_path / "other", "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(ModelLoadError, match="8000 samples a second"):
        onnx(folder)


def test_labels_that_do_not_fit_are_refused(exported: tuple[Path, list[list[float]]]) -> None:
    with pytest.raises(ModelLoadError, match="has 2 labels, the model 4"):
        onnx(exported[0], heads={"speech_emotion": {"labels": ["a", "b"]}})


def test_a_graph_of_another_kind_is_refused(exported: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    shutil.copytree(exported[0], tmp_path / "text")
    shutil.copyfile(BUILT_IN.parent / "embedded" / "minilm.onnx", tmp_path / "text" / "model.onnx")
    with pytest.raises(ModelLoadError, match="no export of such a model"):
        onnx(tmp_path / "text")


def test_missing_files_and_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"lacks model\.onnx"):
        onnx(tmp_path)
    with pytest.raises(ModelLoadError, match="lacks a head for speech_emotion"):
        (tmp_path / "model.onnx").touch()
        (tmp_path / "config.json").touch()
        onnx(tmp_path, heads={})


def heard(runner: Runner, samples: Any) -> Any:
    runner.send(wire.Infer(1, "speech_emotion", [samples]))
    return runner.next()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_torch_answers_as_transformers_does(python: Path, tmp_path: Path, weights: str) -> None:
    """ "bin" has the weights' names of 2021, as the published checkpoint has them."""
    expected = make_listener(python, tmp_path / "model", weights=weights, seconds=SECONDS)
    files = {"safetensors": ("model.safetensors",), "bin": ()}[weights]
    pickles = () if files else ("pytorch_model.bin",)
    runner = Runner(python, spec(tmp_path / "model", "config.json", *files, pickles=pickles, profile="torch"), "cpu")
    try:
        assert isinstance(runner.ready, wire.Ready) and runner.ready.device == "cpu"
        for seconds, row in zip(SECONDS, expected, strict=True):
            [answer] = heard(runner, clip(seconds)).outputs
            assert dict(answer) == pytest.approx(
                dict(zip(("neutral", "joy", "anger", "sadness"), row, strict=True)), abs=1e-4
            )
    finally:
        runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "allowed", "said"),
    [
        ("bin", False, "pickle"),
        ("headless", True, "no trained classifier"),
        ("none", True, "no weights"),
    ],
)
def test_torch_refuses_what_it_cannot_trust(
    python: Path, tmp_path: Path, weights: str, allowed: bool, said: str
) -> None:
    make_listener(python, tmp_path / "model", weights=weights)
    pickles = ("pytorch_model.bin",) if weights == "bin" and allowed else ()
    runner = Runner(python, spec(tmp_path / "model", "config.json", pickles=pickles, profile="torch"), "cpu")
    try:
        assert isinstance(runner.ready, wire.Error)
        assert said in runner.ready.message
    finally:
        runner.close()


def test_the_published_entry_takes_its_labels_from_the_model() -> None:
    entry = read_spec(BUILT_IN / "wav2vec2-superb-er.toml")
    assert entry.runtime == "wav2vec2" and entry.heads["speech_emotion"].labels == ()
    assert [file.path for file in entry.files if file.pickle] == ["pytorch_model.bin"]


def test_an_export_needs_no_torch(exported: tuple[Path, list[list[float]]]) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.runner.adapters.test_wav2vec2 import onnx, clip; "
        f"onnx(Path({str(exported[0])!r})).listen(clip(0.5), 'speech_emotion'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=BUILT_IN.parent.parent
    )
    assert done.stdout.strip() == "False", done.stderr[-2000:]
