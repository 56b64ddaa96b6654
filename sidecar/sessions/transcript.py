"""A live transcript: sound goes in as it is spoken, partial and final texts come out."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidecar.capabilities.asr import Segment, Word
from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.capabilities.vad import FRAME_SAMPLES
from sidecar.errors import SidecarError
from sidecar.sessions.agreement import Agreement
from sidecar.sessions.endpointing import Endpointer, Turn

_BYTES = 2  # a sample is PCM16
_FRAME_BYTES = FRAME_SAMPLES * _BYTES
# Speech begins softly and ends so: what is given to the recogniser around the frames that were found.
_BEFORE_S, _AFTER_S = 0.3, 0.2
_WAITING = 4
# Settled speech that is heard again, so that what follows is recognised with what went before it. Measured with
# PocketSphinx on utterances of 13 s: 46 % word errors, 44 % without any limit, 51 % with 4 s.
_CONTEXT_S = 8.0


Heard = tuple[list[Segment], dict[str, Any]]


class Ears(Protocol):
    """What a transcript needs of the models."""

    async def speech(self, pcm: bytes, state: Any) -> tuple[Sequence[float], Any]:
        """Probability of speech in each whole frame of `pcm`, and the state for the next call."""

    def spare(self) -> bool:
        """Whether the recogniser has time for a transcription that another one will replace."""

    async def recognise(self, pcm: bytes) -> Heard:
        """Segments with words, and what else is to be told of the answer."""


@dataclass
class _Utterance:
    number: int
    start: int
    """In samples from the beginning of the stream."""
    agreement: Agreement = field(default_factory=Agreement)
    pcm: bytes | None = None
    """All of its sound, once it has ended."""
    end: int | None = None
    """Sample behind `pcm`."""
    supposed_end: int | None = None
    """Where the last transcription took it to end, because of a pause."""
    heard: tuple[list[Word], dict[str, Any]] | None = None
    """What that transcription found, with times from the beginning of the stream."""
    tried: int = 0
    """Samples of it that a transcription has seen."""
    told: str = ""

    def unsettled(self) -> int:
        """The sample from which a transcription is still of use. What has settled before it is not heard again: that
        would make every partial of a long utterance dearer than the one before."""
        settled = self.agreement.settled
        known_s = settled[-1]["end"] - _CONTEXT_S if settled else 0.0
        starts = [int(word["start"] * SAMPLE_RATE) for word in settled if word["start"] <= known_s]
        return max([self.start, *starts[-1:]])


class LiveTranscript:
    """Feed it, and run `work` beside; it tells by `tell`. Sound is PCM16, mono, 16 kHz, little-endian.

    Bounded: an utterance by the endpointer's longest, those that wait for the recogniser by `feed`, which then waits.
    """

    def __init__(
        self, ears: Ears, endpointer: Endpointer, tell: Callable[[dict[str, Any]], Awaitable[None]], interval_s: float
    ) -> None:
        self._ears = ears
        self._endpointer = endpointer
        self._tell = tell
        self._interval = int(interval_s * SAMPLE_RATE)
        self._sound = bytearray()
        self._origin = 0
        self._ended_at = 0
        self._fed = 0
        self._unheard = 0
        self._state: Any = None
        self._present: _Utterance | None = None
        self._ended: deque[_Utterance] = deque()
        self._count = 0
        self._partial: asyncio.Task[Any] | None = None
        self._changed = asyncio.Condition()
        self._finished = False

    @property
    def duration_s(self) -> float:
        """Of the sound so far."""
        return self._fed // _BYTES / SAMPLE_RATE

    async def feed(self, pcm: bytes) -> None:
        """More sound. Waits while the recogniser is too far behind."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._ended) < _WAITING)
        self._sound += pcm
        self._fed += len(pcm)
        self._unheard += len(pcm)
        whole = self._unheard // _FRAME_BYTES * _FRAME_BYTES
        if whole:
            await self._hear(whole)

    async def flush(self) -> None:
        """End the present utterance here."""
        if self._unheard:
            self._sound += bytes(-self._unheard % _FRAME_BYTES)
            self._unheard += -self._unheard % _FRAME_BYTES
            await self._hear(self._unheard)
        for turn in self._endpointer.finish():
            self._end(turn)
        await self._announce()

    async def finish(self) -> None:
        """No more sound comes: `work` returns when everything has been told."""
        await self.flush()
        self._finished = True
        await self._announce()

    async def work(self) -> None:
        """Transcribe what there is, endlessly: utterances that have ended first, else the present one so far."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ended or self._due() or self._finished)
            if self._ended:
                await self._settle(self._ended[0])
                async with self._changed:
                    self._ended.popleft()
                    self._changed.notify_all()
            elif self._present is not None and self._due():
                await self._try(self._present)
            elif self._finished:
                return

    # Hearing

    async def _hear(self, size: int) -> None:
        start = len(self._sound) - self._unheard
        piece = bytes(self._sound[start : start + size])
        self._unheard -= size
        probabilities, self._state = await self._ears.speech(piece, self._state)
        for turn in self._endpointer.push(probabilities):
            if turn.kind == "begin":
                self._begin(turn)
            else:
                self._end(turn)
        self._forget()
        present = self._present
        if present is not None and present.supposed_end is None and self._supposed_end() is not None:
            self._give_up_partial()  # the pause's transcription tells more, and may be the final one
        await self._announce()

    def _begin(self, turn: Turn) -> None:
        # Not into the one before: its words would be said again.
        start = max(self._origin, self._ended_at, turn.frame * FRAME_SAMPLES - int(_BEFORE_S * SAMPLE_RATE))
        self._present = _Utterance(self._count, start)
        self._count += 1

    def _end(self, turn: Turn) -> None:
        utterance, self._present = self._present, None
        if utterance is None:
            return
        after_s = 0.0 if turn.forced else _AFTER_S
        self._ended_at = turn.frame * FRAME_SAMPLES
        utterance.end = turn.frame * FRAME_SAMPLES + int(after_s * SAMPLE_RATE)
        utterance.pcm = self._cut(utterance.start, utterance.end)
        self._ended.append(utterance)
        if utterance.supposed_end != utterance.end:
            self._give_up_partial()

    def _give_up_partial(self) -> None:
        """What it would tell is out of date."""
        if self._partial is not None:
            self._partial.cancel()

    def _forget(self) -> None:
        """Let go of sound that belongs to no utterance."""
        needed = self._endpointer.quiet_since * FRAME_SAMPLES - int(_BEFORE_S * SAMPLE_RATE)
        if self._present is not None:
            needed = self._present.start
        drop = max(0, needed - self._origin)
        del self._sound[: drop * _BYTES]
        self._origin += drop

    def _cut(self, start: int, end: int | None = None) -> bytes:
        stop = None if end is None else (end - self._origin) * _BYTES
        return bytes(self._sound[(start - self._origin) * _BYTES : stop])

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # Telling

    def _due(self) -> bool:
        present = self._present
        if present is None:
            return False
        end = self._supposed_end()
        paused = end is not None and end != present.supposed_end
        grown = self._length(present) - present.tried >= self._interval
        # Not queued where others wait: it would be out of date when its turn comes. The next sound asks again.
        return (paused or grown) and self._ears.spare()

    def _length(self, utterance: _Utterance) -> int:
        return self._origin + len(self._sound) // _BYTES - utterance.start

    def _supposed_end(self) -> int | None:
        """Where the present utterance ends if its pause turns out to be the last. None while that is not yet heard."""
        paused = self._endpointer.paused
        if paused is None:
            return None
        end = paused * FRAME_SAMPLES + int(_AFTER_S * SAMPLE_RATE)
        return end if end <= self._origin + len(self._sound) // _BYTES else None

    async def _try(self, utterance: _Utterance) -> None:
        """Transcribe the present utterance so far. In a pause that is its final transcription, made before its time."""
        utterance.supposed_end, utterance.heard = self._supposed_end(), None
        utterance.tried = self._length(utterance)
        start = utterance.unsettled()
        pcm = self._cut(start, utterance.supposed_end)
        self._partial = asyncio.ensure_future(self._ears.recognise(pcm))
        try:
            # Not awaited itself: cancelled because the utterance has ended, it must not seem as if we were.
            await asyncio.wait([self._partial])
            if self._partial.cancelled():
                return
            utterance.heard = _placed(self._partial.result(), start)
        except SidecarError as error:
            if not error.retryable:
                raise
            return
        finally:
            self._partial.cancel()
            self._partial = None
        if utterance is not self._present:
            return
        utterance.agreement.update(utterance.heard[0])
        text = utterance.agreement.text
        if text != utterance.told:
            utterance.told = text
            stable = utterance.agreement.settled_text
            await self._tell({"type": "partial", **_place(utterance), "text": text, "stable": stable})

    async def _settle(self, utterance: _Utterance) -> None:
        assert utterance.pcm is not None
        if utterance.heard is None or utterance.supposed_end != utterance.end:
            start = utterance.unsettled()
            pcm = utterance.pcm[(start - utterance.start) * _BYTES :]
            utterance.heard = _placed(await self._ears.recognise(pcm), start)
        found, told = utterance.heard
        utterance.agreement.finish(found)
        words = utterance.agreement.settled
        text = utterance.agreement.text
        if text or utterance.told:
            named = [{**word, "word": word["word"].strip()} for word in words]
            await self._tell({"type": "final", **_place(utterance), "text": text, "words": named, **told})


def _placed(heard: Heard, start: int) -> tuple[list[Word], dict[str, Any]]:
    """The words, with times from the beginning of the stream. A segment without words counts as one."""
    segments, told = heard
    offset_s = start / SAMPLE_RATE
    words = []
    for segment in segments:
        alone: Word = {"word": segment["text"], "start": segment["start"], "end": segment["end"], "probability": 1.0}
        for word in segment.get("words") or [alone]:
            start_s, end_s = round(word["start"] + offset_s, 3), round(word["end"] + offset_s, 3)
            words.append(Word(word=word["word"], start=start_s, end=end_s, probability=round(word["probability"], 4)))
    return words, told


def _place(utterance: _Utterance) -> dict[str, Any]:
    words = [*utterance.agreement.settled, *utterance.agreement.pending]
    start_s = words[0]["start"] if words else utterance.start / SAMPLE_RATE
    return {
        "utterance": utterance.number,
        "start": round(start_s, 3),
        "end": round(words[-1]["end"] if words else start_s, 3),
    }
