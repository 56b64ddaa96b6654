"""What is done to a text before the library sees it."""

import pytest

from sidecar.runner.espeak_text import parts, tame


@pytest.mark.parametrize(
    "text",
    ["Hello there.", "-5 degrees", "a well-known fact", "Yes - no", "x" * 100, "", "Ünïcödé " * 50, "a/b-c_d", "«so»"],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert tame(text) == (text, [])


def test_hyphens_that_are_no_part_of_a_word_become_a_dash_of_the_same_length() -> None:
    assert tame("one--two ---three .-four (-5") == ("one— two —  three .—four (-5", [])


def test_words_without_end_are_divided_and_the_places_told() -> None:
    text = f"a {'b' * 250} c {'é' * 120}"
    tamed, spaces = tame(text)
    assert max(len(word.encode()) for word in tamed.split()) == 100
    assert "".join(letter for place, letter in enumerate(tamed) if place not in spaces) == text
    assert [tamed[place] for place in spaces] == [" "] * 4


def test_parts_are_counted_in_bytes() -> None:
    assert [len(part) for part in parts("語" * 70)] == [33, 33, 4]
    assert parts("short") == ["short"]
