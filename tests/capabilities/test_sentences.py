"""Where a sentence ends, for texts as people and models write them."""

import random
import time

import pytest

from sidecar.capabilities.sentences import LIMIT, Splitter, clean, split

TEXTS = {
    "He left. She stayed.": ["He left.", "She stayed."],
    "Dr. Smith paid $3.50. Mrs. Jones did not!": ["Dr. Smith paid $3.50.", "Mrs. Jones did not!"],
    "We open at 5 p.m. The door is red.": ["We open at 5 p.m.", "The door is red."],
    "We open at 5 p.m. on Sunday.": ["We open at 5 p.m. on Sunday."],
    "Pi is 3.14 and e is 2.718. Good.": ["Pi is 3.14 and e is 2.718.", "Good."],
    "See Fig. 3 and No. 5 of Vol. 2.": ["See Fig. 3 and No. 5 of Vol. 2."],
    "J. R. R. Tolkien met the U.S. Army.": ["J. R. R. Tolkien met the U.S. Army."],
    "The end... or not? Well… maybe.": ["The end... or not?", "Well… maybe."],
    "Wait… What? No!": ["Wait…", "What?", "No!"],
    '"Stop!" he said. "Go on." She did.': ['"Stop!" he said.', '"Go on."', "She did."],
    "Visit www.example.com. It is (mostly) free.": ["Visit www.example.com.", "It is (mostly) free."],
    "Really?! Yes!!! Fine.": ["Really?!", "Yes!!!", "Fine."],
    "今日は良い天気です。明日も？はい！Yes.": ["今日は良い天気です。", "明日も？", "はい！", "Yes."],
    "「行こう。」と言った。": ["「行こう。」", "と言った。"],
    "नमस्ते। आप कैसे हैं?": ["नमस्ते।", "आप कैसे हैं?"],
    "A heading\n\nA first\nline. And more.": ["A heading", "A first line.", "And more."],
    "To buy:\n- bread\n- milk\n2. tea": ["To buy:", "- bread", "- milk", "2. tea"],
    "1. First of all. 2. Then.": ["1. First of all.", "2. Then."],
    "no end in sight": ["no end in sight"],
    " \n\t ": [],
    "": [],
    "...": ["..."],
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:24]))
def test_sentences(text: str) -> None:
    assert list(split(text)) == TEXTS[text]


def test_a_text_that_comes_in_pieces_gives_the_same_sentences() -> None:
    rng = random.Random(3)
    texts = list(TEXTS)
    for _ in range(60):
        text = " ".join(rng.sample(texts, 4)) + " word" * rng.randrange(200)
        whole = list(split(text, 120))
        splitter, pieces, position = Splitter(120), [], 0
        while position < len(text):
            size = rng.randrange(1, 30)
            pieces += splitter.feed(text[position : position + size])
            position += size
        assert [*pieces, *splitter.flush()] == whole


def test_the_first_sentence_is_given_out_when_the_second_begins() -> None:
    splitter = Splitter()
    assert list(splitter.feed("It is done. ")) == []
    assert list(splitter.feed("Now ")) == ["It is done."]
    assert list(splitter.flush()) == ["Now"]


@pytest.mark.parametrize("text", ["word " * 3000, "x" * 5000, "一" * 3000, "a, b; " * 900, "\u3042 " * 2000])
def test_no_sentence_is_longer_than_the_limit_and_nothing_is_lost(text: str) -> None:
    sentences = list(split(text))
    assert max(map(len, sentences)) <= LIMIT
    assert "".join("".join(sentences).split()) == "".join(text.split())


def test_a_long_sentence_is_cut_at_a_clause_before_a_word() -> None:
    clause = "and then it went on for a good while"
    sentences = list(split(", ".join([clause] * 30)))
    assert all(sentence.endswith("while,") for sentence in sentences[:-1])
    numbers = list(split("9876543210 " * 30))
    assert max(map(len, numbers)) < 120, "a digit takes as long as several letters"
    wide = list(split("文" * 80 + "，" + "字" * 80))
    assert wide[0].endswith("，") and max(map(len, wide)) <= LIMIT // 3


def test_cleaning_leaves_words_whole() -> None:
    assert clean("a\x00b\x1bc\u202ed") == "a b c d"
    assert clean("syl\xadla\xadble \ufeffx") == "syllable x"
    assert clean("x\ud800y") == "x y", "a lone surrogate, which JSON can carry, has no UTF-8"
    assert clean("line\nnext e\u0301") == "line\nnext é"
    assert clean("👩\u200d🚀") == "👩\u200d🚀"


def test_a_long_text_is_split_in_time_that_grows_with_its_length() -> None:
    started = time.process_time()
    assert sum(1 for _ in split("It was a dark night. " * 5000)) == 5000
    assert time.process_time() - started < 5
