"""Phonemes with their punctuation and words, in the alphabets of the neural voices."""

import pytest

from sidecar.runner.alphabet import TIE, kokoro_name, kokoro_symbols
from sidecar.runner.espeak import library
from sidecar.runner.transcript import NO_WORD, Transcript, known, portions, timed, transcribe

SENTENCE = 'Hello there, Dr. Smith paid $3.50 for "two" cups of the coffee… really?'


def words_of(transcript: Transcript) -> dict[str, str]:
    parts = [""] * len(transcript.words)
    for symbol, owner in zip(transcript.symbols, transcript.owners, strict=True):
        if owner != NO_WORD:
            parts[owner] += symbol
    return dict(zip(transcript.words, parts, strict=True))


def test_punctuation_is_kept_where_it_divides() -> None:
    symbols = transcribe(SENTENCE, library(), "en-us", timings=False).symbols
    assert symbols.startswith("həlˈoʊ ðˈɛɹ, dˈɑːktɚ smˈɪθ pˈeɪd θɹˈiː dˈɑːlɚz ænd fˈɪfti sˈɛnts")
    assert '"tˈuː"' in symbols and "kˈɔfi… ɹˈiəli?" in symbols
    assert "." not in symbols, "neither the abbreviation's nor the number's point"
    assert transcribe("We met at 5 p.m. today.", library(), "en-us", timings=False).symbols.endswith("tədˈeɪ.")


def test_every_word_has_its_phonemes() -> None:
    words = words_of(transcribe(SENTENCE, library(), "en-us", timings=True))
    assert list(words) == SENTENCE.replace('"', "").replace(",", "").replace("…", "").replace("?", "").replace(
        "Dr.", "Dr"
    ).split(" ")
    assert words["Hello"] == "həlˈoʊ" and words["Dr"] == "dˈɑːktɚ"
    assert words["$3.50"] == "θɹˈiːdˈɑːlɚzændfˈɪftisˈɛnts"
    # eSpeak says these two as one.
    assert (words["of"], words["the"]) == ("ʌv", "ðə")


def test_english_figures_are_read_as_people_do_and_others_as_they_are_written() -> None:
    text = "In 1984 it was $1.5 billion."
    words = words_of(transcribe(text, library(), "en-gb", timings=True))
    assert words["1984"].startswith("nˈaɪntiːn") and "hˈʌndɹ" not in words["1984"]
    assert words["$1.5"].startswith("wˈɒn") and words["billion"].endswith("dˈɒləz")
    german = transcribe(text, library(), "de", timings=False).symbols
    assert german.rstrip(".") == library().phonemes(text, "de")


def test_times_follow_the_durations() -> None:
    transcript = Transcript("hˈaɪː, jˈu", [0, 0, 0, 0, 0, NO_WORD, NO_WORD, 1, 1, 1], ["Hi", "you"])
    words, phonemes = timed(transcript, [0.1] * 10)
    assert [(span.text, round(span.start_s, 3), round(span.end_s, 3)) for span in words] == [
        ("Hi", 0.0, 0.5),
        ("you", 0.7, 1.0),
    ]
    assert [(span.text, round(span.start_s, 3), round(span.end_s, 3)) for span in phonemes] == [
        ("h", 0.0, 0.1),
        ("ˈa", 0.1, 0.3),
        ("ɪː", 0.3, 0.5),
        ("j", 0.7, 0.8),
        ("ˈu", 0.8, 1.0),
    ]


def test_unknown_symbols_are_left_out_with_their_owners() -> None:
    transcript = known(Transcript("aхb…", [0, 0, 1, NO_WORD], ["a", "b"]), {"a", "b", "."}, {"…": "."})
    assert transcript.symbols == "ab." and transcript.owners == [0, 1, NO_WORD]


def test_a_transcript_is_cut_between_words() -> None:
    transcript = Transcript("ab cd ef", [0, 0, -1, 1, 1, -1, 2, 2], ["x", "y", "z"])
    parts = list(portions(transcript, 4))
    assert [part.symbols for part in parts] == ["ab ", "cd ", "ef"]
    assert [owner for part in parts for owner in part.owners] == transcript.owners
    assert [len(part.symbols) for part in portions(Transcript("a" * 10, [0] * 10, ["w"]), 4)] == [4, 4, 2]
    assert list(portions(Transcript("", [], []), 4)) == []


@pytest.mark.parametrize(
    ("text", "voice", "symbols"),
    [
        ("How are you today", "en-us", "hˌW ɑɹ juː tədˈA"),
        ("The boy joined a choir", "en-us", "ðə bˈY ʤˈYnd ə kwˈIəɹ"),
        ("Go home later", "en-us", "ɡˌO hˈOm lˈATəɹ"),
        ("Go home there", "en-gb", "ɡˌQ hˈQm ðˈɛː"),
        ("bonjour", "fr", "bɔ̃ʒˈuʁ"),
        ("grazie mille", "it", "ɡrˈaʦje mˈille"),
    ],
)
def test_kokoro_reads_one_letter_for_each_diphthong_and_affricate(text: str, voice: str, symbols: str) -> None:
    found = kokoro_symbols(library().phonemes(text, voice, TIE), voice)
    # What stress eSpeak gives to little words is its own business.
    assert found.replace("ˌ", "").replace("ː", "") == symbols.replace("ˌ", "").replace("ː", "")
    assert TIE not in found


def test_kokoro_letters_have_names_in_ipa() -> None:
    assert [kokoro_name(letter) for letter in "AIOWYʤʧTə"] == ["eɪ", "aɪ", "oʊ", "aʊ", "ɔɪ", "dʒ", "tʃ", "ɾ", "ə"]
