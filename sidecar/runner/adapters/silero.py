"""Silero VAD, version 6, as the faster-whisper wheel carries it: the ONNX graph alone, driven by onnxruntime.

Inputs `input` (frames, 576): 64 samples of context and the frame's own 512, at 16 kHz; `h` and `c` (1, 1, 128).
Outputs `speech_probs` (frames,), `hn`, `cn`. Source: github.com/snakers4/silero-vad (MIT).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import Report
from sidecar.runner.session import open_session

_FRAME, _CONTEXT, _WIDTH = 512, 64, 128
# Measured: larger pieces gain nothing and only take memory.
_PIECE_FRAMES = 256


def silero_path() -> Path:
    """The graph in the faster-whisper wheel, which need not be imported for it. Raises ModelLoadError."""
    package = find_spec("faster_whisper")
    for folder in package.submodule_search_locations or () if package else ():
        if found := sorted(Path(folder, "assets").glob("silero_vad_v6*.onnx")):
            return found[0]
    raise ModelLoadError("the wheel faster-whisper, which carries silero_vad_v6.onnx, is not installed here")


class Detector:
    """The graph on one thread: its steps are too small to share, a second one takes longer."""

    def __init__(self) -> None:
        self._session, self.device, self.device_reason = open_session(silero_path(), 1, "cpu")
        names = {node.name for node in self._session.get_inputs()}
        if names != {"input", "h", "c"}:
            raise ModelLoadError(f"silero_vad_v6.onnx has inputs {sorted(names)}, not input, h and c")

    def probabilities(self, samples: Any, state: Any) -> tuple[Any, Any]:
        """See `SpeechDetector`. The state is {context (64,), h, c (1, 1, 128)}, all float32."""
        if state is None:
            context, h, c = np.zeros(_CONTEXT, np.float32), *np.zeros((2, 1, 1, _WIDTH), np.float32)
        else:
            context, h, c = (state[name].numpy() for name in ("context", "h", "c"))
        count = -(-len(samples) // _FRAME)
        if not count:
            return np.empty(0, np.float32), {"context": context, "h": h, "c": c}
        sound = np.zeros(_CONTEXT + count * _FRAME, np.float32)
        sound[:_CONTEXT] = context
        sound[_CONTEXT : _CONTEXT + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(sound, _CONTEXT + _FRAME)[::_FRAME]
        found = []
        for start in range(0, count, _PIECE_FRAMES):
            feeds = {"input": np.ascontiguousarray(frames[start : start + _PIECE_FRAMES]), "h": h, "c": c}
            piece, h, c = self._session.run(["speech_probs", "hn", "cn"], feeds)
            found.append(piece.reshape(-1))
        return np.concatenate(found), {"context": sound[-_CONTEXT:], "h": h, "c": c}


class SileroAdapter:
    """The detector as a model of its own."""

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = ""

    def load(self, report: Report) -> None:
        self._detector = Detector()
        self.device_reason = "frame after frame, a small model is fastest on one core"
        self._detector.probabilities(np.zeros(_FRAME, np.float32), None)

    def probabilities(self, samples: Any, state: Any) -> tuple[Any, Any]:
        return self._detector.probabilities(samples, state)
