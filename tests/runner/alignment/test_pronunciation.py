"""Words and how they are said: dictionary, eSpeak NG's rules, figures, stress."""

from pathlib import Path

import pocketsphinx
import pytest

from sidecar.capabilities.phones import VOWELS
from sidecar.errors import InputError
from sidecar.runner.alignment.pronunciation import Lexicon, Word


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")))


def said(word: Word) -> list[str]:
    return [" ".join(phones) for phones in word.pronunciations]


def test_words_of_the_dictionary_have_all_their_pronunciations_and_their_stress(lexicon: Lexicon) -> None:
    read, banana, the = lexicon.words("read banana the")
    assert said(read) == ["R EH1 D", "R IY1 D"]
    assert said(banana) == ["B AH0 N AE1 N AH0"]
    assert set(said(the)) == {"DH AH0", "DH IY0"}


def test_what_the_dictionary_lacks_is_read_by_rule(lexicon: Lexicon) -> None:
    [word] = lexicon.words("kubectl")
    [phones] = word.pronunciations
    assert phones[0] == "K" and "1" in "".join(phones)
    assert all(phone.rstrip("012") in lexicon_phones() for phone in phones)


def lexicon_phones() -> set[str]:
    text = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text(encoding="ascii")
    return {phone for line in text.splitlines() for phone in line.split()[1:]}


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ("7", "S EH1 V AH0 N"),
        ("1984", "N AY1 N T IY2 N EY1 T IY0 F AO1 R"),
        ("10:30", "T EH1 N TH ER1 T IY0"),
        ("50%", "F IH1 F T IY0 P ER0 S EH1 N T"),
    ],
)
def test_figures_are_read(lexicon: Lexicon, figure: str, expected: str) -> None:
    [word] = lexicon.words(figure)
    plain = [[phone.rstrip("012") for phone in phones] for phones in word.pronunciations]
    assert [phone.rstrip("012") for phone in expected.split()] in plain


def test_money_is_read_with_its_unit(lexicon: Lexicon) -> None:
    [word] = lexicon.words("$5.50")
    assert word.text == "$5.50"
    assert any(phones[:3] == ("F", "AY1", "V") and "D" in phones for phones in word.pronunciations)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world!", ["Hello", "world"]),
        ("well—that is…odd", ["well", "that", "is", "odd"]),
        ("e-mail twenty-five", ["e-mail", "twenty-five"]),
        ("“Don’t,” she said.", ["Don’t", "she", "said"]),
        ("the boys' hats", ["the", "boys", "hats"]),
        ("yes/no one,two 1,000", ["yes", "no", "one", "two", "1,000"]),
        ("U.S. A.M.", ["U", "S", "A", "M"]),
        ("rock & roll", ["rock", "&", "roll"]),
        ("nice 👍 day ... !", ["nice", "day"]),
        ("naïve café", ["naïve", "café"]),
    ],
)
def test_words_as_written_without_punctuation(lexicon: Lexicon, text: str, words: list[str]) -> None:
    found = lexicon.words(text)
    assert [word.text for word in found] == words
    assert all(word.pronunciations for word in found)


def test_compounds_are_put_together_from_their_parts(lexicon: Lexicon) -> None:
    [word] = lexicon.words("twenty-five")
    assert all(phones[-3:] == ("F", "AY1", "V") for phones in word.pronunciations)


def test_every_vowel_has_a_stress_and_nothing_else_has(lexicon: Lexicon) -> None:
    for word in lexicon.words(
        "Unfortunately the photographer's refrigerator exploded, which was very unexpected indeed."
    ):
        for phones in word.pronunciations:
            for phone in phones:
                assert (phone[-1] in "012") == (phone.rstrip("012") in VOWELS)
            assert "".join(phones).count("1") <= 1


@pytest.mark.parametrize("text", ["日本", "hello Привет", "שלום"])
def test_other_scripts_are_refused_by_name(lexicon: Lexicon, text: str) -> None:
    with pytest.raises(InputError, match="cannot be read as English"):
        lexicon.words(text)


def test_a_word_of_regular_expression_signs_is_just_text(lexicon: Lexicon) -> None:
    assert [word.text for word in lexicon.words("a.* (b|c) [d]\\n")] == ["a", "b|c", "d]\\n"]
