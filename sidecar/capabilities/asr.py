"""Speech to text."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypedDict, cast

from pydantic import BaseModel, Field, field_validator

from sidecar.capabilities.base import Capability, Endpoint, Meta
from sidecar.capabilities.languages import language_code
from sidecar.capabilities.recording import RecordingRequest, as_samples, recording_cost

MAX_PROMPT = 4000


class Word(TypedDict):
    """One word, from `start` to `end` (s), with the recogniser's own probability that it is right."""

    word: str
    start: float
    end: float
    probability: float


class _Segment(TypedDict):
    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    seek: int
    tokens: list[int]


class Segment(_Segment, total=False):
    """A piece of the transcript. `text` begins with a space where the language puts one between words; `words` are
    there if they were asked for. The statistics are Whisper's; a recogniser that has others translates them.
    """

    words: list[Word]


class Head(TypedDict):
    """What is known before the first segment: the first piece of every transcription."""

    language: str
    language_probability: float
    duration_s: float


class TranscribeOptions(TypedDict):
    """How to transcribe; the fields of `TranscriptionRequest`."""

    language: str | None
    task: Literal["transcribe", "translate"]
    word_timestamps: bool
    vad_filter: bool
    initial_prompt: str | None
    hotwords: str | None
    temperature: float | None
    beam_size: int


class TranscribeItem(TypedDict):
    """`samples` float32 or PCM16, mono, 16 kHz."""

    samples: Any
    options: TranscribeOptions


class Transcriber(Protocol):
    """What an adapter offers to speech recognition."""

    def transcribe(self, samples: Any, options: TranscribeOptions) -> Iterator[Head | Segment]:
        """The head, then segments in order, each as soon as it is known. `samples` (n,) float32, mono, 16 kHz.

        Raises InputError for what this model cannot do (a language, say), before the head.
        """


class TranscriptionRequest(RecordingRequest):
    """How to transcribe. The sound itself comes beside it."""

    language: str | None = Field(None, description="spoken language (en, en-US, english); none or auto: recognise it")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="`translate`: into English")
    word_timestamps: bool = Field(False, description="also when each word begins and ends")
    vad_filter: bool = Field(True, description="leave out what is no speech, which Whisper otherwise makes words of")
    initial_prompt: str | None = Field(None, max_length=MAX_PROMPT, description="what was said before, or its style")
    hotwords: str | None = Field(None, max_length=MAX_PROMPT, description="words that are likely to be said")
    temperature: float | None = Field(None, ge=0, le=1, description="none, or 0: raised only where decoding fails")
    beam_size: int = Field(5, ge=1, le=10)

    @field_validator("language")
    @classmethod
    def _code(cls, value: str | None) -> str | None:
        return None if value is None or value.strip().lower() == "auto" else language_code(value)


class TranscribedWord(BaseModel):
    """One word with its times (s) and probability."""

    word: str
    start: float
    end: float
    probability: float


class TranscribedSegment(BaseModel):
    """A piece of the transcript. `confidence`: mean probability of its tokens (geometric)."""

    id: int
    start: float
    end: float
    text: str
    confidence: float
    words: list[TranscribedWord] | None = None


class Transcription(BaseModel):
    """The whole."""

    text: str
    language: str
    language_probability: float
    duration_s: float
    segments: list[TranscribedSegment]
    model: str
    processing_time_ms: float


class Asr(Capability[TranscriptionRequest, TranscribeItem, "list[Head | Segment]", Transcription]):
    """`POST /asr/transcribe`, OpenAI's transcriptions and translations, and live transcripts."""

    name = "asr"
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()  # the routes take sound, not JSON: server/transcription.py

    def prepare(self, request: TranscriptionRequest) -> TranscribeItem:
        options: TranscribeOptions = {
            "language": request.language,
            "task": request.task,
            "word_timestamps": request.word_timestamps,
            "vad_filter": request.vad_filter,
            "initial_prompt": request.initial_prompt,
            "hotwords": request.hotwords,
            "temperature": request.temperature,
            "beam_size": request.beam_size,
        }
        return {"samples": request.samples, "options": options}

    def cost(self, item: TranscribeItem) -> int:
        return recording_cost(item["samples"])

    def run_batch(self, adapter: Transcriber, items: Sequence[TranscribeItem]) -> list[list[Head | Segment]]:
        return [list(self.run_stream(adapter, item)) for item in items]

    def run_stream(self, adapter: Transcriber, item: TranscribeItem) -> Iterator[Head | Segment]:
        return adapter.transcribe(as_samples(item["samples"]), item["options"])

    def finish(self, output: list[Head | Segment], meta: Meta) -> Transcription:
        head, segments = split_pieces(output)
        return Transcription(
            text=joined(segments),
            language=head["language"],
            language_probability=round(head["language_probability"], 4),
            duration_s=round(head["duration_s"], 3),
            segments=[tell(segment) for segment in segments],
            model=meta.model,
            processing_time_ms=meta.processing_time_ms,
        )


def split_pieces(pieces: Sequence[Head | Segment]) -> tuple[Head, list[Segment]]:
    """The head and the segments of a transcription's pieces."""
    return cast(Head, pieces[0]), cast("list[Segment]", list(pieces[1:]))


def joined(segments: Sequence[Segment]) -> str:
    """The text of all segments."""
    return "".join(segment["text"] for segment in segments).strip()


def tell(segment: Segment) -> TranscribedSegment:
    """A segment for clients."""
    words = segment.get("words")
    return TranscribedSegment(
        id=segment["id"],
        start=round(segment["start"], 3),
        end=round(segment["end"], 3),
        text=segment["text"].strip(),
        confidence=round(confidence(segment), 4),
        words=None if words is None else [_tell_word(word) for word in words],
    )


def confidence(segment: Segment) -> float:
    """0 to 1."""
    return min(1.0, math.exp(min(0.0, segment["avg_logprob"])))


def _tell_word(word: Word) -> TranscribedWord:
    return TranscribedWord(
        word=word["word"].strip(),
        start=round(word["start"], 3),
        end=round(word["end"], 3),
        probability=round(word["probability"], 4),
    )
