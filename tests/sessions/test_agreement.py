"""LocalAgreement-2 on made-up transcriptions."""

import random

from sidecar.capabilities.asr import Word
from sidecar.sessions.agreement import Agreement


def words(text: str, start: float = 0.0, each: float = 0.4) -> list[Word]:
    """One word every 0.4 s."""
    return [
        Word(word=f" {word}", start=start + number * each, end=start + (number + 1) * each, probability=1.0)
        for number, word in enumerate(text.split())
    ]


def test_one_transcription_settles_nothing() -> None:
    agreement = Agreement()
    agreement.update(words("that agent is"))
    assert agreement.settled_text == "" and agreement.text == "that agent is"


def test_what_two_agree_on_settles() -> None:
    agreement = Agreement()
    agreement.update(words("that agent is all"))
    agreement.update(words("That agent is already logged"))
    assert agreement.settled_text == "That agent is" and agreement.text == "That agent is already logged"
    agreement.update(words("that agent is already logged on"))
    assert agreement.settled_text == "That agent is already logged"


def test_the_settled_part_outlives_a_change_of_mind() -> None:
    agreement = Agreement()
    for text in ("that agent is", "that agent is", "this a gent is already"):
        agreement.update(words(text))
    assert agreement.text.startswith("that agent is")
    agreement.finish(words("this other gent is already logged"))
    assert agreement.settled_text.startswith("that agent is") and agreement.settled_text.endswith("already logged")


def test_a_word_that_comes_again_a_little_later_is_the_same() -> None:
    agreement = Agreement()
    agreement.update(words("please check"))
    agreement.update(words("please check"))
    agreement.update(words("please check the", start=0.25))
    assert agreement.text == "please check the"


def test_a_word_said_twice_stays_twice() -> None:
    agreement = Agreement()
    agreement.update(words("no"))
    agreement.update(words("no no"))
    agreement.update(words("no no"))
    assert agreement.settled_text == "no no"


def test_settled_only_grows_whatever_comes() -> None:
    chance = random.Random(4)
    for _ in range(200):
        agreement, before = Agreement(), ""
        for length in range(1, 12):
            said = " ".join(chance.choice("abc") for _ in range(length))
            agreement.update(words(said, start=chance.uniform(-0.1, 0.1)))
            assert agreement.settled_text.startswith(before) and agreement.text.startswith(agreement.settled_text)
            before = agreement.settled_text
        agreement.finish(words("a b c"))
        assert agreement.settled_text.startswith(before) and not agreement.pending
