"""Long texts in portions, against a real runner: nothing waits for a listener but a portion."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.capabilities.tts import Order, Piece, SpeechRequest, Synthesis
from sidecar.catalogue.catalogue import BUILT_IN, Catalogue
from sidecar.errors import InferenceError, OutOfMemoryError, RunnerCrashedError, RunnerTimeoutError
from sidecar.inference.pool import Pool
from sidecar.sessions.speech import PORTION, portions, speak
from sidecar.settings import Settings

TEXT = " ".join(f"This is sentence number {number} of a text that goes on." for number in range(120))


def order(text: str = TEXT) -> Order:
    return Synthesis().prepare(SpeechRequest(text=text))


def test_portions_are_whole_sentences_and_all_of_the_text() -> None:
    parts = list(portions(order()))
    assert len(parts) > 4 and all(len(part["text"]) < PORTION + 400 for part in parts)
    assert " ".join(part["text"].replace("\n\n", " ") for part in parts) == TEXT
    assert [part["more"] for part in parts] == [True] * (len(parts) - 1) + [False]
    assert list(portions(order("One."))) == [order("One.")]


class Maker:
    """Makes the pieces of portions at once, and remembers which were asked for and which were ended."""

    def __init__(self, error: Exception | None = None, within: bool = False) -> None:
        self.asked = 0
        self.ended = 0
        self.errors = [error] if error else []
        self._within = within

    async def stream(self, portion: Order) -> AsyncGenerator[Piece, None]:
        self.asked += 1
        try:
            for text in portion["text"].split("\n\n"):
                ends = not (self._within and self.errors)
                yield Piece(text=text, ends=ends, last=False, audio=np.zeros(1), sample_rate=1, words=[], phonemes=[])
                if self.errors:
                    raise self.errors.pop()
        finally:
            self.ended += 1


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_slow_listener_lets_one_portion_be_made_ahead() -> None:
    async def test() -> None:
        maker = Maker()
        heard = 0
        async with aclosing(speak(maker.stream, order())) as pieces:
            async for _ in pieces:
                heard += 1
                for _ in range(20):
                    await asyncio.sleep(0)
                assert maker.asked - maker.ended <= 1 and maker.asked <= 2 + heard // 15
        assert heard == 120 and maker.asked == maker.ended == len(list(portions(order())))

    run(test)


def test_leaving_ends_what_is_being_made() -> None:
    async def test() -> None:
        maker = Maker()
        pieces = speak(maker.stream, order())
        await anext(pieces)
        await pieces.aclose()
        assert maker.asked == maker.ended

    run(test)


@pytest.mark.parametrize("text", ["One.", "One. Two.", TEXT])
@pytest.mark.parametrize("error", [RunnerCrashedError("gone"), RunnerTimeoutError("gone"), OutOfMemoryError("gone")])
def test_a_runner_that_dies_between_two_sentences_is_not_missed(text: str, error: Exception) -> None:
    async def test() -> None:
        maker = Maker(error)
        heard = [piece["text"] async for piece in speak(maker.stream, order(text))]
        assert " ".join(heard) == text
        assert maker.asked == maker.ended == len(list(portions(order(text)))) + (text != "One.")

    run(test)


@pytest.mark.parametrize(
    "maker",
    [
        Maker(InferenceError("no")),
        Maker(RunnerCrashedError("in the middle of a sentence"), within=True),
    ],
)
def test_other_errors_come_after_what_was_made_before_them(maker: Maker) -> None:
    async def test() -> None:
        heard = []
        with pytest.raises((InferenceError, RunnerCrashedError)):
            async for piece in speak(maker.stream, order("One. Two.")):
                heard.append(piece["text"])
        assert heard == ["One."] and maker.asked == 1

    run(test)


def test_a_runner_that_dies_again_is_missed() -> None:
    async def test() -> None:
        maker = Maker(RunnerCrashedError("again"))
        maker.errors *= 2
        heard = []
        with pytest.raises(RunnerCrashedError):
            async for piece in speak(maker.stream, order("One. Two. Three.")):
                heard.append(piece["text"])
        assert heard == ["One.", "Two."]

    run(test)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[[], Pool]]:
    def make() -> Pool:
        settings = Settings.load(home=tmp_path)
        return Pool(Catalogue([BUILT_IN]), settings, lambda *_: None, lambda _: None)

    return make  # type: ignore[return-value]


def test_through_the_pool_it_is_one_speech_without_gaps(pool: Callable[[], Pool]) -> None:
    async def test() -> None:
        running = pool()
        spec = running.resolve("tts")
        try:
            async with aclosing(speak(lambda portion: running.stream(spec, "tts", portion), order())) as pieces:
                made = [piece async for piece in pieces]
        finally:
            await running.close()
        assert " ".join(piece["text"] for piece in made) == TEXT
        assert [piece["last"] for piece in made] == [False] * 119 + [True]
        # Every sentence but the last ends in its pause, also at the border of two portions.
        ends = [np.frombuffer(piece["audio"].data, "<i2")[-2000:] for piece in made]
        assert all(not np.abs(end.astype(int)).max() > 200 for end in ends[:-1])

    run(test)
