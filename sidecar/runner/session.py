"""ONNX Runtime sessions: the device that can really be used, and why it is that one."""

import contextlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError

# Provider, name of the device for people, and on which request it is tried. In order of preference.
_ACCELERATORS = (
    ("CUDAExecutionProvider", "cuda:0", ("auto", "cuda")),
    ("CoreMLExecutionProvider", "mps", ("mps",)),  # not by itself: what it cannot compute it splits off, slower
)


class Opened(NamedTuple):
    """A session, where it computes, and the reason."""

    session: Any
    device: str
    device_reason: str


def graph_of(spec: ModelSpec) -> Path:
    """Path of the entry's ONNX graph. Raises ModelLoadError if it names none, or if any of its files is missing."""
    if missing := spec.missing_files():
        raise ModelLoadError(f"{spec.folder} lacks {', '.join(missing)}")
    if spec.graph is None:
        raise ModelLoadError(f"model {spec.id!r} names no .onnx file in its TOML")
    return spec.folder / spec.graph


def open_session(graph: Path | bytes, threads: int, device: str) -> Opened:
    """Open a graph, by its path or content, on the requested `device` ("auto", "cpu", "cuda", "mps").

    What cannot be used is a reason in the result and a line in the log, never an error: the CPU can do it, too.
    """
    model = str(graph) if isinstance(graph, Path) else graph
    available = set(ort.get_available_providers())
    refusals = []
    for provider, name, asked in _ACCELERATORS:
        if device not in asked:
            continue
        if provider not in available:
            if device != "auto":
                refusals.append(f"this environment's onnxruntime has no {provider}")
            continue
        session, refusal = _try(model, threads, provider)
        if session is not None:
            return Opened(session, name, f"{provider} is there and works")
        refusals.append(refusal)
    session = ort.InferenceSession(model, _options(threads), providers=["CPUExecutionProvider"])
    if refusals:
        reason = f"{device} could not be used, so it runs on the CPU: {'; '.join(refusals)}"
        print(reason, file=sys.stderr, flush=True)
    elif device == "cpu":
        reason = "it is set to run on the CPU"
    else:
        reason = "no accelerator that onnxruntime can use was found"
    return Opened(session, "cpu", reason)


def _try(model: str | bytes, threads: int, provider: str) -> tuple[Any, str]:
    """The session with `provider`, or why not. onnxruntime falls back silently where a library is missing."""
    try:
        if provider == "CUDAExecutionProvider" and hasattr(ort, "preload_dlls"):
            with contextlib.suppress(OSError):  # of the environment's nvidia-* packages; else the system's are found
                ort.preload_dlls()
        session = ort.InferenceSession(model, _options(threads), providers=[provider, "CPUExecutionProvider"])
    except Exception as error:  # whatever a driver or library raises
        return None, f"{provider}: {str(error).splitlines()[0][:300]}"
    if provider not in session.get_providers():
        return None, f"{provider} could not be loaded (a CUDA library or the driver is missing or too old)"
    return session, ""


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; the warnings are about switches that are meant
    # Spinning threads would burn the host app's cores between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
