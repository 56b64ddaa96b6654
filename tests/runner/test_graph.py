"""Reading an ONNX file's outline, and giving out a tensor that it keeps to itself."""

from pathlib import Path

import numpy as np
import pytest

from sidecar.errors import ModelLoadError
from sidecar.runner.graph import nodes, outputs, with_output
from sidecar.runner.session import open_session
from tests.voices import GRAPHS

PIPER, KOKORO = GRAPHS / "piper.onnx", GRAPHS / "kokoro.onnx"


def test_the_outline_is_read_without_the_library() -> None:
    assert outputs(PIPER) == ["output"] and outputs(KOKORO) == ["waveform"]
    found = list(nodes(PIPER))
    assert [node.outputs for node in found if node.op_type == "Ceil"] == [["/Ceil_output_0"]]
    assert found[-1].op_type == "Identity" and found[-1].outputs == ["output"]
    assert any("/encoder/Clip_output_0" in node.outputs for node in nodes(KOKORO))


def test_an_inner_tensor_becomes_an_output_and_the_rest_stays() -> None:
    feeds = {
        "input": np.array([[1, 0, 14, 0, 20, 0, 2]]),
        "input_lengths": np.array([7]),
        "scales": np.array([0.6, 1.0, 0.8], dtype=np.float32),
        "sid": np.array([0]),
    }
    plain = open_session(PIPER, 1, "cpu")
    opened = open_session(with_output(PIPER, "/Ceil_output_0"), 1, "cpu")
    assert [node.name for node in opened.session.get_outputs()] == ["output", "/Ceil_output_0"]
    audio, durations = opened.session.run(None, feeds)
    assert (audio == plain.session.run(None, feeds)[0]).all()
    assert durations.reshape(-1).tolist() == [2, 1, 5, 1, 1, 1, 3] and audio.shape == (1, 1, 1, 14 * 256)


@pytest.mark.parametrize(
    "content", [b"\x3a\xff\xff\xff\x7f" + b"x" * 100, b"<html>", b"\x08\x08", PIPER.read_bytes()[:900]]
)
def test_what_is_no_graph_is_named(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"broken\.onnx"):
        list(nodes(broken))
