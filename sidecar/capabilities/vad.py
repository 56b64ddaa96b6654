"""Voice activity: where in a recording somebody speaks, or whether somebody speaks now."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, cast

from pydantic import BaseModel, Field

from sidecar.capabilities.base import Capability, Endpoint, Meta
from sidecar.capabilities.recording import SAMPLE_RATE, RecordingRequest, as_samples

FRAME_SAMPLES = 512
FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
_HYSTERESIS = 0.15


class SpeechDetector(Protocol):
    """What an adapter offers to voice activity detection."""

    def probabilities(self, samples: Any, state: Any) -> tuple[Any, Any]:
        """Probability of speech in each frame of 512 samples, float32 (frames,), and the state for what follows.

        `samples` are float32 at 16 kHz; a last frame that is not full is filled with zeros. `state` is None at the
        beginning of a recording, else what the call before gave: the detector itself remembers nothing.
        """


class Knobs(NamedTuple):
    """How frames become segments. Times in ms; `threshold` is a probability."""

    threshold: float = 0.5
    min_speech_ms: float = 250.0
    min_silence_ms: float = 100.0
    speech_pad_ms: float = 30.0


class VadRequest(RecordingRequest):
    """How speech is told from silence. The sound itself comes beside it."""

    threshold: float = Field(0.5, ge=0.0, le=1.0, description="probability of speech above which a segment begins")
    min_speech_ms: float = Field(250.0, ge=0, le=60_000, description="shorter segments are left out")
    min_silence_ms: float = Field(100.0, ge=0, le=60_000, description="shorter pauses do not end a segment")
    speech_pad_ms: float = Field(30.0, ge=0, le=5000, description="added to both ends of a segment")


class VadSegment(BaseModel):
    """From where to where somebody speaks (s)."""

    start: float
    end: float


class VadResponse(BaseModel):
    """Segments in order, and the share of the recording that they are."""

    segments: list[VadSegment]
    speech_ratio: float
    duration_s: float
    model: str
    processing_time_ms: float


class VadItem(TypedDict):
    """With `knobs` the output is a `VadOutput` of the whole recording; without, a `VadStep` of one of its pieces."""

    samples: Any
    knobs: Sequence[float] | None
    state: Any


class VadOutput(TypedDict):
    """Segments as (start, end) in seconds."""

    segments: list[tuple[float, float]]
    duration_s: float


class VadStep(TypedDict):
    """One probability for each frame of the piece, and the state to send with the next one."""

    probabilities: list[float]
    state: Any


class Vad(Capability[VadRequest, VadItem, VadOutput | VadStep, VadResponse]):
    """`POST /vad/detect`, and the ears of everything that listens."""

    name = "vad"
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()  # the routes take sound, not JSON: server/recordings.py

    def prepare(self, request: VadRequest) -> VadItem:
        knobs = Knobs(request.threshold, request.min_speech_ms, request.min_silence_ms, request.speech_pad_ms)
        return {"samples": request.samples, "knobs": knobs, "state": None}

    def cost(self, item: VadItem) -> int:
        return 1 + len(item["samples"]) // FRAME_SAMPLES

    def run_batch(self, adapter: SpeechDetector, items: Sequence[VadItem]) -> list[VadOutput | VadStep]:
        return [self._run(adapter, item) for item in items]

    def _run(self, adapter: SpeechDetector, item: VadItem) -> VadOutput | VadStep:
        samples = as_samples(item["samples"])
        probabilities, state = adapter.probabilities(samples, item["state"])
        if item["knobs"] is None:
            return {"probabilities": probabilities.tolist(), "state": state}
        duration_s = len(samples) / SAMPLE_RATE
        return {"segments": find_speech(probabilities, duration_s, Knobs(*item["knobs"])), "duration_s": duration_s}

    def finish(self, output: VadOutput | VadStep, meta: Meta) -> VadResponse:
        found = cast(VadOutput, output)
        segments = [VadSegment(start=round(start, 3), end=round(end, 3)) for start, end in found["segments"]]
        spoken_s = sum(end - start for start, end in found["segments"])
        return VadResponse(
            segments=segments,
            speech_ratio=round(min(1.0, spoken_s / found["duration_s"]), 4) if found["duration_s"] else 0.0,
            duration_s=round(found["duration_s"], 3),
            model=meta.model,
            processing_time_ms=meta.processing_time_ms,
        )


def find_speech(probabilities: Any, duration_s: float, knobs: Knobs) -> list[tuple[float, float]]:
    """Segments (start, end) in seconds from frame probabilities, float array (frames,).

    Speech begins above the threshold and ends 0.15 below it (hysteresis, as Silero's own segmentation); then short
    pauses are closed, short segments dropped, and what is left is padded, neighbours at most up to their middle.
    """
    import numpy as np

    values = np.asarray(probabilities)
    above, below = values >= knobs.threshold, values < max(knobs.threshold - _HYSTERESIS, 0.01)
    # Between the two thresholds a frame is what the last decided one was.
    decided = np.maximum.accumulate(np.where(above | below, np.arange(len(values)), -1))
    speaking = (decided >= 0) & above[decided] if len(values) else above
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speaking, [False]]).astype(np.int8)))
    starts, ends = edges[0::2] * FRAME_S, edges[1::2] * FRAME_S
    if not len(starts):
        return []
    paused = starts[1:] - ends[:-1] >= knobs.min_silence_ms / 1000
    starts, ends = starts[np.concatenate([[True], paused])], ends[np.concatenate([paused, [True]])]
    long_enough = ends - starts >= knobs.min_speech_ms / 1000
    starts, ends = starts[long_enough], ends[long_enough]
    if not len(starts):
        return []
    middles = (starts[1:] + ends[:-1]) / 2
    pad_s = knobs.speech_pad_ms / 1000
    starts = np.maximum(starts - pad_s, np.concatenate([[0.0], middles]))
    ends = np.minimum(ends + pad_s, np.concatenate([middles, [duration_s]]))
    return [(float(start), float(end)) for start, end in zip(starts, ends, strict=True)]
