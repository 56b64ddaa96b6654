"""Speech synthesis: a text to audio, sentence by sentence, so that the first is heard before the last is made."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict

from pydantic import BaseModel, Field

from sidecar.capabilities.base import Capability, Endpoint, InferenceRequest, Meta
from sidecar.capabilities.sentences import LIMIT, clean, split
from sidecar.errors import InputError

MAX_CHARACTERS = 100_000
MAX_DESCRIPTION = 4096
"""Characters."""
SPEEDS = (0.25, 4.0)
PUNCTUATION = ".,;:!?…—–\"'“”‘’«»()[]{}¿¡。，！？、；："
"""What stands round a word and is no part of it."""
Format = Literal["wav", "pcm", "mp3", "opus", "flac", "aac"]


class Delivery(NamedTuple):
    """How to say it. `speed`, `pitch` and `volume` are factors that hold all that the request says.

    The rest is for voices made from words, which follow emotion and description themselves: `manner` is an emotion in
    words, `description` the request's own, `tempo` the speed that it asks for beside them. `seed` is for those that
    draw at random.
    """

    speed: float = 1.0
    pitch: float = 1.0
    volume: float = 1.0
    manner: str = ""
    description: str = ""
    tempo: float = 1.0
    seed: int = 0


EMOTIONS = {
    "neutral": Delivery(),
    "joy": Delivery(1.06, 1.06, 1.1, "very cheerful and lively, with an expressive, animated delivery"),
    "anger": Delivery(1.08, 1.04, 1.25, "angry and forceful, speaking loudly and fast"),
    "sadness": Delivery(0.88, 0.95, 0.85, "sad and subdued, speaking slowly and softly in a low pitch"),
    "fear": Delivery(1.1, 1.07, 0.9, "anxious and trembling, speaking quickly in a high pitch"),
    "disgust": Delivery(0.94, 0.95, 1.0, "disgusted and contemptuous, speaking slowly with a low pitch"),
    "surprise": Delivery(1.04, 1.08, 1.1, "surprised and excited, very expressive, in a high pitch"),
}
"""The seven emotions of `/emotion/detect` as speech. The factors are small, as more of it sounds like a defect; their
directions follow Murray and Arnott (J. Acoust. Soc. Am. 93, 1993) for those that they have. The words are for voices
made from a description."""

# What of a description a voice can follow that was not made from it.
_WORDS = {
    "very fast": Delivery(1.25),
    "very slow": Delivery(0.75),
    "fast": Delivery(1.15),
    "quick": Delivery(1.15),
    "rapid": Delivery(1.15),
    "slow": Delivery(0.87),
    "high pitch": Delivery(1.0, 1.07),
    "high-pitch": Delivery(1.0, 1.07),
    "low pitch": Delivery(1.0, 0.94),
    "low-pitch": Delivery(1.0, 0.94),
    "deep": Delivery(1.0, 0.94),
    "whisper": Delivery(0.95, 1.0, 0.5),
    "quiet": Delivery(1.0, 1.0, 0.7),
    "soft": Delivery(1.0, 1.0, 0.8),
    "loud": Delivery(1.0, 1.0, 1.25),
}


class Span(NamedTuple):
    """A word or phoneme and when it is heard, in seconds."""

    text: str
    start_s: float
    end_s: float


class Speech(NamedTuple):
    """int16 audio of shape (samples,), and what is heard when, counted from its beginning.

    `more` says that another part of the sentence follows for certain: this one then need not wait for it.
    """

    audio: Any
    words: Sequence[Span] = ()
    phonemes: Sequence[Span] = ()
    more: bool = False


class Speaker(Protocol):
    """What an adapter offers to this capability."""

    sample_rate: int
    sentence_limit: int

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech | None]:
        """One sentence in one or more parts; `pause` adds the silence before the next. Raises InputError, too.

        None is no part: between two steps of long work it is where others get their turn, and where it can be ended.
        """


class Order(TypedDict):
    """The runner's item. `more` says that another text follows at once."""

    text: str
    voice: str | None
    speed: float
    emotion: str | None
    description: str | None
    timings: bool
    more: bool
    seed: int


class Piece(TypedDict):
    """A part of the audio: int16 of shape (samples,). Times of words and phonemes count from its beginning.

    `text` is the sentence that begins with it, `ends` says that one ends with it, `last` that nothing follows.
    """

    text: str
    ends: bool
    last: bool
    audio: Any
    sample_rate: int
    words: list[tuple[str, float, float]]
    phonemes: list[tuple[str, float, float]]


class SpeechRequest(InferenceRequest):
    """A text, and how to say it."""

    text: str = Field(max_length=MAX_CHARACTERS)
    voice: str | None = Field(None, description="one of `GET /tts/voices`; without it the model's own")
    language: str | None = Field(None, description="BCP 47; picks a voice where none is named")
    speed: float = Field(1.0, ge=SPEEDS[0], le=SPEEDS[1])
    format: Format = "wav"
    emotion: str | None = Field(None, description=", ".join(EMOTIONS))
    description: str | None = Field(None, max_length=MAX_DESCRIPTION, description="the voice and delivery in words")
    seed: int = Field(0, ge=0, lt=1 << 32, description="for voices that draw at random: another one, another rendering")


class SpeechResponse(BaseModel):
    """All of it in one answer, with times in milliseconds."""

    audio: str = Field(description="base64 of a file in `format`")
    format: Format
    sample_rate: int
    duration_s: float
    phonemes: list[dict[str, Any]]
    words: list[dict[str, Any]]
    voice: str | None
    processing_time_ms: float
    model: str


class Synthesis(Capability[SpeechRequest, Order, list[Piece], BaseModel]):
    """`POST /tts/synthesize` and `/v1/audio/speech`, whose routes stream and so are their own."""

    name = "tts"
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()

    def prepare(self, request: SpeechRequest) -> Order:
        text = clean(request.text).strip()
        if not text:
            raise InputError("text is blank: there is nothing to say")
        if request.emotion is not None and request.emotion not in EMOTIONS:
            raise InputError(f"emotion {request.emotion!r} is not one of {', '.join(EMOTIONS)}")
        return Order(
            text=text,
            voice=request.voice,
            speed=request.speed,
            emotion=request.emotion,
            description=request.description,
            timings=False,
            more=False,
            seed=request.seed,
        )

    def cost(self, item: Order) -> int:
        return len(item["text"])

    def run_batch(self, adapter: Speaker, items: Sequence[Order]) -> list[list[Piece]]:
        return [[piece for piece in self.run_stream(adapter, item) if piece is not None] for item in items]

    def run_stream(self, adapter: Speaker, item: Order) -> Iterator[Piece | None]:
        delivery = delivered(item)
        sentences = split(item["text"], min(LIMIT, adapter.sentence_limit))
        sentence = next(sentences, None)
        while sentence is not None:
            following = next(sentences, None)
            pause = following is not None or item["more"]
            speeches = adapter.speak(sentence, item["voice"], delivery, pause=pause, timings=item["timings"])
            for made in _marked(speeches):
                if made is None:
                    yield None
                    continue
                speech, ends = made
                yield _piece(sentence, adapter.sample_rate, speech, ends=ends, last=ends and not pause)
                sentence = ""
            sentence = following

    def finish(self, output: list[Piece], meta: Meta) -> BaseModel:
        raise NotImplementedError("speech is answered by its own routes, in pieces")


def delivered(item: Order) -> Delivery:
    """Emotion, description and speed together."""
    emotion = EMOTIONS[item["emotion"] or "neutral"]
    description = item["description"] or ""
    told = _told(description)
    return Delivery(
        item["speed"] * emotion.speed * told.speed,
        emotion.pitch * told.pitch,
        emotion.volume * told.volume,
        emotion.manner,
        description,
        item["speed"],
        item["seed"],
    )


def _told(description: str) -> Delivery:
    """The factors of the words in a description; of two that contain each other, the longer one's."""
    text = description.lower()
    speed = pitch = volume = 1.0
    for word, delivery in _WORDS.items():
        if word in text:
            text = text.replace(word, " ")
            speed, pitch, volume = speed * delivery.speed, pitch * delivery.pitch, volume * delivery.volume
    return Delivery(_within(speed, 0.6, 1.5), _within(pitch, 0.9, 1.1), _within(volume, 0.4, 1.5))


def _within(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _marked(speeches: Iterator[Speech | None]) -> Iterator[tuple[Speech, bool] | None]:
    """Each part, and whether it is the sentence's last, for which one is held back until it is known."""
    held: Speech | None = None
    for speech in speeches:
        if held is not None and speech is not None:
            yield held, False
            held = None
        if speech is None or speech.more:
            yield None if speech is None else (speech, False)
        else:
            held = speech
    if held is not None:
        yield held, True


def _piece(text: str, sample_rate: int, speech: Speech, *, ends: bool, last: bool) -> Piece:
    return Piece(
        text=text,
        ends=ends,
        last=last,
        audio=speech.audio,
        sample_rate=sample_rate,
        words=[_rounded(span) for span in speech.words],
        phonemes=[_rounded(span) for span in speech.phonemes],
    )


def _rounded(span: Span) -> tuple[str, float, float]:
    return span.text, round(span.start_s, 4), round(span.end_s, 4)
