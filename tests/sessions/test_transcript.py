"""The live transcript with ears that do as they are told: which sound is recognised when, and what is told of it."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from sidecar.capabilities.asr import Segment, Word
from sidecar.errors import InferenceError, OverloadedError, SidecarError
from sidecar.sessions.endpointing import Endpointer
from sidecar.sessions.transcript import LiveTranscript

FRAME = 512


def sound(text: str) -> bytes:
    """A frame for each letter; capitals are speech, the letter is what is said, "." is silence."""
    return b"".join(ord(letter).to_bytes(2, "little") * FRAME for letter in text)


class Scripted:
    """Ears that read the letters: each spoken frame is a word."""

    def __init__(self) -> None:
        self.recognised: list[str] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: SidecarError | None = None
        self.busy = False

    def spare(self) -> bool:
        return not self.busy

    async def speech(self, pcm: bytes, state: Any) -> tuple[Sequence[float], Any]:
        assert len(pcm) % (2 * FRAME) == 0
        frames = [chr(pcm[at]) for at in range(0, len(pcm), 2 * FRAME)]
        return [0.9 if frame.isupper() else 0.0 for frame in frames], (state or 0) + len(frames)

    async def recognise(self, pcm: bytes) -> tuple[list[Segment], dict[str, Any]]:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            error, self.error = self.error, None
            raise error
        heard = [(at / 2 / 16_000, chr(pcm[at])) for at in range(0, len(pcm) - 1, 2 * FRAME)]
        words = [
            Word(word=f" {letter}", start=at, end=at + 0.032, probability=1.0)
            for at, letter in heard
            if letter.isupper()
        ]
        self.recognised.append("".join(letter for _, letter in heard))
        segment: Any = {"text": "".join(word["word"] for word in words), "start": 0.0, "end": 1.0, "words": words}
        return ([segment] if words else []), {"model": "scripted"}


class Session:
    def __init__(self, longest: int = 1000, interval: int = 4, silence: int = 3) -> None:
        self.ears = Scripted()
        self.told: list[dict[str, Any]] = []
        frame_s = FRAME / 16_000
        endpointer = Endpointer(0.5, 2 * frame_s, silence * frame_s, longest * frame_s)
        self.transcript = LiveTranscript(self.ears, endpointer, self._tell, interval * frame_s)
        self.work = asyncio.ensure_future(self.transcript.work())

    async def _tell(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    def finals(self) -> list[str]:
        return [message["text"] for message in self.told if message["type"] == "final"]

    async def settle(self) -> None:
        """Let everything that can go on go on."""
        for _ in range(50):
            await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 10)

    asyncio.run(bounded())


@pytest.mark.parametrize("step", [7, 100, 1024, 5000, 1_000_000])
def test_utterances_are_told_with_their_places(step: int) -> None:
    async def test() -> None:
        session = Session()
        data = sound("." * 30 + "ABCDEF" + "." * 20 + "GHI" + "." * 20)
        for start in range(0, len(data), step):
            await session.transcript.feed(data[start : start + step])
        await session.transcript.finish()
        await session.work
        assert session.finals() == ["A B C D E F", "G H I"]
        first, second = (message for message in session.told if message["type"] == "final")
        assert first["start"] == pytest.approx(30 * 0.032, abs=0.032) and second["utterance"] == 1
        assert second["start"] == pytest.approx(56 * 0.032, abs=0.032)
        assert first["model"] == "scripted" and len(first["words"]) == 6
        assert session.transcript.duration_s == pytest.approx(79 * 0.032)

    run(test)


def test_partials_grow_and_settle_while_somebody_speaks() -> None:
    async def test() -> None:
        session = Session()
        for letter in ".." + "ABCDEFGHIJKLMNOP":
            await session.transcript.feed(sound(letter))
            await session.settle()
        partials = [message for message in session.told if message["type"] == "partial"]
        assert len(partials) >= 3
        for one, after in itertools.pairwise(partials):
            assert after["stable"].startswith(one["stable"]) and after["stable"] and after["text"] != one["text"]
        session.work.cancel()

    run(test)


def test_a_pause_is_transcribed_before_it_is_known_to_be_the_last() -> None:
    """What is said after the pause has cost its time already when the utterance ends."""

    async def test() -> None:
        session = Session(interval=1000, silence=15)
        await session.transcript.feed(sound("." * 20 + "ABCD" + "." * 8))
        await session.settle()
        assert len(session.ears.recognised) == 1 and not session.finals()
        assert session.told[-1]["text"] == "A B C D" and session.told[-1]["stable"] == ""
        await session.transcript.feed(sound("." * 7))
        await session.settle()
        assert session.finals() == ["A B C D"] and len(session.ears.recognised) == 1, "not again"
        session.work.cancel()

    run(test)


def test_a_pause_that_was_not_the_last_is_forgotten() -> None:
    async def test() -> None:
        session = Session(interval=1000, silence=15)
        for part in ("." * 20 + "ABCD" + "." * 8, "EF", "." * 8, "." * 7):
            await session.transcript.feed(sound(part))
            await session.settle()
        assert session.finals() == ["A B C D E F"]
        assert [said.strip(".") for said in session.ears.recognised] == ["ABCD", "ABCD........EF"]
        session.work.cancel()

    run(test)


def test_an_utterance_that_ends_while_its_pause_is_transcribed_waits_for_that() -> None:
    async def test() -> None:
        session = Session(interval=1000, silence=15)
        session.ears.gate.clear()
        await session.transcript.feed(sound("." * 20 + "ABCD" + "." * 8))
        await session.settle()
        await session.transcript.feed(sound("." * 7))
        await session.settle()
        assert not session.finals() and session.ears.cancelled == 0
        session.ears.gate.set()
        await session.settle()
        assert session.finals() == ["A B C D"] and len(session.ears.recognised) == 1
        session.work.cancel()

    run(test)


def test_a_pause_whose_transcription_failed_is_transcribed_again() -> None:
    async def test() -> None:
        session = Session(interval=1000, silence=15)
        session.ears.error = OverloadedError("later")
        await session.transcript.feed(sound("." * 20 + "ABCD" + "." * 8))
        await session.settle()
        await session.transcript.feed(sound("." * 7))
        await session.settle()
        assert session.finals() == ["A B C D"] and len(session.ears.recognised) == 1
        session.work.cancel()

    run(test)


def test_the_end_of_an_utterance_ends_its_partial() -> None:
    async def test() -> None:
        session = Session()
        session.ears.gate.clear()
        await session.transcript.feed(sound("..ABCDEFGH"))
        await session.settle()
        await session.transcript.feed(sound("......"))
        await session.settle()
        session.ears.gate.set()
        await session.transcript.finish()
        await session.work
        assert session.ears.cancelled == 1 and session.finals() == ["A B C D E F G H"]
        assert [message["type"] for message in session.told] == ["final"]

    run(test)


def test_partials_are_left_out_while_others_wait_for_the_recogniser() -> None:
    async def test() -> None:
        session = Session(interval=4, silence=15)
        session.ears.busy = True
        for letter in ".." + "ABCDEFGH" + "." * 10:
            await session.transcript.feed(sound(letter))
            await session.settle()
        assert session.ears.recognised == [] and session.told == []
        session.ears.busy = False
        await session.transcript.feed(sound("."))
        await session.settle()
        assert [message["text"] for message in session.told] == ["A B C D E F G H"], "made up for with the next sound"
        session.ears.busy = True
        await session.transcript.feed(sound("IJKL" + "." * 15))
        await session.transcript.finish()
        await session.work
        assert session.finals() == ["A B C D E F G H I J K L"] and len(session.ears.recognised) == 2

    run(test)


def test_what_has_settled_long_ago_is_not_recognised_again() -> None:
    async def test() -> None:
        session = Session(interval=10)
        letters = "".join(chr(ord("A") + number % 26) for number in range(500))
        for letter in letters:
            await session.transcript.feed(sound(letter))
            await session.settle()
        await session.transcript.finish()
        await session.work
        [final] = session.finals()
        assert final.replace(" ", "") == letters
        # Eight seconds of context, which are 250 frames, and what has come since.
        assert len(session.ears.recognised) > 40 and 250 < max(map(len, session.ears.recognised)) < 290
        words = next(message["words"] for message in session.told if message["type"] == "final")
        assert [word["start"] for word in words] == pytest.approx([at * 0.032 for at in range(500)], abs=0.002)

    run(test)


def test_a_session_that_ends_ends_its_work() -> None:
    async def test() -> None:
        session = Session()
        session.ears.gate.clear()
        await session.transcript.feed(sound("..ABCDEFGH"))
        await session.settle()
        session.work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await session.work
        await session.settle()
        assert session.ears.cancelled == 1

    run(test)


def test_flush_ends_the_utterance_and_listens_on() -> None:
    async def test() -> None:
        session = Session()
        await session.transcript.feed(sound("..ABC")[:-100])
        await session.transcript.flush()
        await session.settle()
        assert session.finals() == ["A B C"]
        await session.transcript.feed(sound("..DEF......"))
        await session.transcript.finish()
        await session.work
        assert session.finals() == ["A B C", "D E F"]

    run(test)


def test_endless_speech_is_cut_and_nothing_is_said_twice() -> None:
    async def test() -> None:
        session = Session(longest=10)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        await session.transcript.feed(sound(letters))
        await session.transcript.finish()
        await session.work
        assert " ".join(session.finals()) == " ".join(letters) and len(session.finals()) > 2

    run(test)


def test_silence_says_nothing_and_keeps_nothing() -> None:
    async def test() -> None:
        session = Session()
        for _ in range(200):
            await session.transcript.feed(sound("." * 10))
        assert len(session.transcript._sound) < 2 * 16_000
        await session.transcript.finish()
        await session.work
        assert session.told == [] and session.ears.recognised == []

    run(test)


def test_whoever_sends_faster_than_it_is_recognised_waits() -> None:
    async def test() -> None:
        session = Session()
        session.ears.gate.clear()
        feeding = asyncio.ensure_future(session.transcript.feed(b""))
        for _ in range(20):
            feeding = asyncio.ensure_future(session.transcript.feed(sound("..ABC.....")))
            await session.settle()
            if not feeding.done():
                break
        assert not feeding.done() and len(session.transcript._ended) <= 4
        session.ears.gate.set()
        await feeding
        await session.transcript.finish()
        await session.work

    run(test)


def test_an_overloaded_model_costs_a_partial_but_not_the_session() -> None:
    async def test() -> None:
        session = Session()
        session.ears.error = OverloadedError("full")
        await session.transcript.feed(sound("..ABCDEFGH"))
        await session.settle()
        await session.transcript.finish()
        await session.work
        assert session.finals() == ["A B C D E F G H"]
        session = Session()
        session.ears.error = InferenceError("broken")
        await session.transcript.feed(sound("..ABCDEFGH"))
        with pytest.raises(InferenceError):
            await session.work

    run(test)
