"""Devices of ONNX Runtime sessions, as far as a machine without an accelerator can show them."""

import onnxruntime as ort
import pytest

from sidecar.runner.session import open_session
from sidecar.settings import ROOT

GRAPH = ROOT / "models" / "embedded" / "minilm.onnx"


def test_auto_and_cpu_say_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert open_session(GRAPH, 1, "cpu")[1:] == ("cpu", "it is set to run on the CPU")
    _, device, reason = open_session(GRAPH, 1, "auto")
    assert reason and (device == "cpu" or "CUDA" in reason)
    assert not capfd.readouterr().err, "nothing went wrong, so nothing is to be warned of"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_falls_back_with_a_warning(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    provider = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}[device]
    session, used, reason = open_session(GRAPH, 1, device)
    if provider in ort.get_available_providers():
        assert session is not None
        return
    assert used == "cpu" and provider in reason and device in reason
    assert reason in capfd.readouterr().err
    assert session.run(["emotion_logits"], _feeds(session))[0].shape == (1, 7)


def test_a_provider_that_cannot_be_loaded_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    # onnxruntime warns of a provider that it does not have and leaves it out, as it does where a library is missing.
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        _, used, reason = open_session(GRAPH, 1, "cuda")
    assert used == "cpu" and "could not be loaded" in reason


def _feeds(session: object) -> dict[str, object]:
    import numpy as np

    one = np.ones((1, 4), np.int64)
    feeds: dict[str, object] = {"input_ids": one, "attention_mask": one, "token_type_ids": one * 0}
    names = {node.name for node in session.get_inputs()}  # type: ignore[attr-defined]
    for name in names - feeds.keys():
        feeds[name] = np.array(False)
    return {name: feeds[name] for name in names}
