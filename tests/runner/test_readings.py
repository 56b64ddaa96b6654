"""English figures as people read them."""

import pytest

from sidecar.runner.readings import read, read_words, readings

READ = {
    "It is $3.50.": "It is 3 dollars and 50 cents.",
    "(£1.01) or €20?": "(1 pound and 1 penny) or 20 euros?",
    '"$0.99", $1 and $1,000,000.00': '"99 cents", 1 dollar and 1,000,000 dollars',
    "-$5 is less than $0.05": "minus 5 dollars is less than 5 cents",
    "$1.5 billion, not £5 million.": "1.5 billion dollars, not 5 million pounds.",
    "$5k, €2.5M and $3bn": "5 thousand dollars, 2.5 million euros and 3 billion dollars",
    "In 1984, 1066 and 2023.": "In 19 84, 1066 and 20 23.",
    "the 1980s, '90s and 70's": "the 19 eighties, nineties and seventies",
    "No. 5 and Nos. 7": "number 5 and numbers 7",
    "No. Five is not #1!": "No. Five is not number 1!",
    "cats vs. dogs": "cats versus dogs",
    "at 10:00 p.m., 5:00, 10:05, 10:30 or 20:00": "at 10 p.m., 5 o'clock, 10 oh 5, 10:30 or 20 hundred",
    # Which are left to the synthesiser.
    "1900 2005 3.14 1,234 12/25/2023 2/3 50% 192.168.0.1 007": None,
    "$ 5, 5$, US$5, $$$, $, #, C#, #tag, 's": None,
    "  rock 'n' roll --\tdon't\n": None,
    "": None,
}


@pytest.mark.parametrize("text", READ)
def test_figures_are_read_as_people_do(text: str) -> None:
    assert read(text).text == (text if READ[text] is None else READ[text])


def test_places_lead_back_to_the_words_as_written() -> None:
    text = ' It cost "$1.5 billion" in 1984, 10:05.'
    reading = read(text)
    assert [text[start:].split()[0] for start in reading.written] == text.split()
    for word, written in {"cost": "cost", "1.5": '"$1.5', "dollars": 'billion"', "84": "1984,", "oh": "10:05."}.items():
        place = reading.place(reading.text.index(word))
        assert text[place:].split()[0] == written
    assert read("").place(3) == 0


def test_each_word_keeps_its_place() -> None:
    words = ["$5", "million", "dollars", "$2", "$3", "million"]
    assert read_words(words) == ["5", "million dollars", "dollars", "2 dollars", "3", "million dollars"]
    assert readings(["$5.50"]) == [["5 dollars and 50 cents", "5 dollars 50", "5 50"]]
    assert readings([]) == []
