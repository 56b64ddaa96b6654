"""Phoneme alignment: when each sound and word of a known text is said in a recording."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypedDict

from pydantic import BaseModel, Field

from sidecar.capabilities.base import Capability, Endpoint, Meta
from sidecar.capabilities.recording import SAMPLE_RATE, RecordingRequest, recording_cost
from sidecar.capabilities.textgrid import Interval, textgrid
from sidecar.capabilities.visemes import Keyframe, keyframes
from sidecar.errors import AudioTooLongError, InputError

MAX_S = 600.0
MAX_CHARACTERS = 20_000


class AlignRequest(RecordingRequest):
    """A recording and what is said in it."""

    text: str = Field(max_length=MAX_CHARACTERS)
    textgrid: bool = Field(False, description="add a TextGrid, the file format of Praat")
    visemes: bool = Field(False, description="add keyframes of mouth shapes")


class AlignedPhoneme(BaseModel):
    """ARPABET with stress (vowels end in 0, 1 or 2), IPA, times in milliseconds, and how probable it is, 0 to 1."""

    phoneme: str
    ipa: str
    start_ms: float
    end_ms: float
    confidence: float


class AlignedWord(BaseModel):
    """A word as written, times in milliseconds, and how probable it is that it was said there, 0 to 1."""

    word: str
    start_ms: float
    end_ms: float
    confidence: float


class AlignResponse(BaseModel):
    """`confidence` is the probability that the text is the one that was said."""

    phonemes: list[AlignedPhoneme]
    words: list[AlignedWord]
    confidence: float
    duration_ms: float
    processing_time_ms: float
    model: str
    textgrid: str | None = None
    visemes: list[Keyframe] | None = None


class Item(TypedDict):
    """What the runner gets: `audio` is float32, mono, 16 kHz."""

    text: str
    audio: Any


class Spoken(TypedDict):
    """A word and its sounds as (ARPABET, IPA, start, end, confidence); times in seconds."""

    word: str
    confidence: float
    phones: Sequence[tuple[str, str, float, float, float]]


class Alignment(TypedDict):
    """What the runner gives: words in order, each with at least one sound."""

    words: list[Spoken]
    confidence: float
    duration_s: float


class Aligns(Protocol):
    """What an adapter offers to this capability."""

    def align(self, samples: Any, text: str) -> Alignment:
        """`samples`: float32 array (n,), mono, 16 kHz. Raises InputError for a text that cannot be said so fast."""


class Align(Capability[AlignRequest, Item, Alignment, AlignResponse]):
    """`POST /align/phonemes`, whose route takes audio and so is its own."""

    name = "align"
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()

    def prepare(self, request: AlignRequest) -> Item:
        if not request.text.strip():
            raise InputError("text is blank: there is nothing to align")
        duration_s = len(request.samples) / SAMPLE_RATE
        if duration_s > MAX_S:
            raise AudioTooLongError(f"the audio has {duration_s:.0f} s; {MAX_S:g} s can be aligned at once")
        return Item(text=request.text, audio=request.samples)

    def cost(self, item: Item) -> int:
        return recording_cost(item["audio"])

    def run_batch(self, adapter: Aligns, items: Sequence[Item]) -> list[Alignment]:
        return [adapter.align(item["audio"].numpy(), item["text"]) for item in items]

    def finish(self, output: Alignment, meta: Meta) -> AlignResponse:
        request: AlignRequest = meta.request
        words = output["words"]
        phones = [phone for word in words for phone in word["phones"]]
        spans = [Interval(start, end, name) for name, _, start, end, _ in phones]
        return AlignResponse(
            phonemes=[
                AlignedPhoneme(
                    phoneme=name, ipa=ipa, start_ms=_ms(start), end_ms=_ms(end), confidence=round(confidence, 4)
                )
                for name, ipa, start, end, confidence in phones
            ],
            words=[_word(word) for word in words],
            confidence=round(output["confidence"], 4),
            duration_ms=_ms(output["duration_s"]),
            processing_time_ms=meta.processing_time_ms,
            model=meta.model,
            textgrid=_textgrid(words, spans, output["duration_s"]) if request.textgrid else None,
            visemes=keyframes(spans, output["duration_s"]) if request.visemes else None,
        )


def _word(word: Spoken) -> AlignedWord:
    first, last = word["phones"][0], word["phones"][-1]
    return AlignedWord(
        word=word["word"], start_ms=_ms(first[2]), end_ms=_ms(last[3]), confidence=round(word["confidence"], 4)
    )


def _textgrid(words: Sequence[Spoken], phones: Sequence[Interval], duration_s: float) -> str:
    spans = [Interval(word["phones"][0][2], word["phones"][-1][3], word["word"]) for word in words]
    return textgrid({"words": spans, "phones": phones}, duration_s)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
