"""How the words of a text are said: the CMU dictionary, and eSpeak NG's rules for what it does not hold."""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sidecar.capabilities.phones import VOWELS, from_ipa
from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.espeak import library
from sidecar.runner.readings import readings

_VOICE = "en-us"
_MOST_VARIANTS = 6
_EDGES = " \t.,;:!?…\"'“”‘’«»()[]{}<>*_~`|¿¡"
_BETWEEN = re.compile(r"[\s—–/…]+|--+|(?<=[.,;:!?])(?=[^\W\d])")
_SPELT = re.compile(r"[a-z]+(?:'[a-z]+)*'?")
_SPOKEN_SIGNS = frozenset("&%+=@#$£€°")
# English says these without stress within a sentence; alone, eSpeak NG stresses whatever it is given.
_UNSTRESSED = frozenset(
    "a an and are as at but can could for from had has have he her him his i in is it of on or our she should some than"  # noqa: SIM905
    " that the them there they to us was we were would you your".split()
)


class Word(NamedTuple):
    """A word as written, and the ways to say it: ARPABET phones, vowels with their stress."""

    text: str
    pronunciations: tuple[tuple[str, ...], ...]


class Lexicon:
    """A Sphinx dictionary file (`word PH PH …`, further ones as `word(2)`), searched where it lies."""

    def __init__(self, path: Path) -> None:
        """Raises ModelLoadError."""
        try:
            # Looking a word up in the text takes under a millisecond; a table of all would take 60 MiB.
            self._text = b"\n" + path.read_bytes()
        except OSError as error:
            raise ModelLoadError(f"the pronunciation dictionary cannot be read: {error}") from None
        self._look_up = lru_cache(4096)(self._search)

    def words(self, text: str) -> list[Word]:
        """The words of `text` that can be said, in their order. Punctuation belongs to none.

        Raises InputError for a word in letters that English is not written in.
        """
        written = list(_split(text))
        found = (Word(word, self._pronounce(word, ways)) for word, ways in zip(written, readings(written), strict=True))
        return [word for word in found if word.pronunciations]

    def _pronounce(self, word: str, ways: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        if ways == [word] and (known := self._known(word)):
            return known
        read = [tuple(from_ipa(library().phonemes(way, _VOICE))) for way in ways]
        return tuple(dict.fromkeys(phones for phones in read if phones))

    def _known(self, word: str) -> tuple[tuple[str, ...], ...]:
        """From the dictionary, by its parts if need be; none for a word with one that is not there."""
        spelt = word.lower().replace("’", "'")
        parts = [part for part in spelt.split("-") if part]
        by_part = [self._look_up(part) for part in parts]
        if not all(by_part):
            return ()
        joined = itertools.islice(itertools.product(*by_part), _MOST_VARIANTS if by_part else 0)
        return tuple(tuple(itertools.chain.from_iterable(each)) for each in joined)

    def _search(self, word: str) -> tuple[tuple[str, ...], ...]:
        """Its entries; none for what is no plain English spelling."""
        if not _SPELT.fullmatch(word):
            return ()
        entries = list(self._entries(word))
        if not entries:
            return ()
        pattern = _stresses(word)
        return tuple(_stressed(phones, pattern) for phones in entries)

    def _entries(self, word: str) -> Iterator[list[str]]:
        for number in itertools.count(1):
            head = f"\n{word} " if number == 1 else f"\n{word}({number}) "
            at = self._text.find(head.encode())
            if at < 0:
                return
            start = at + len(head)
            yield self._text[start : self._text.index(b"\n", start)].decode("ascii").split()


def _split(text: str) -> Iterator[str]:
    for token in _BETWEEN.split(text):
        word = token.strip(_EDGES)
        if any(sign.isalpha() and "LATIN" not in unicodedata.name(sign, "") for sign in word):
            raise InputError(f"text: {word[:40]!r} cannot be read as English, which is what this model aligns")
        if any(sign.isalnum() or sign in _SPOKEN_SIGNS for sign in word):
            yield word


def _stresses(word: str) -> str:
    """The stress of each of its syllables, by eSpeak NG: "010" for "banana"."""
    pattern = "".join(phone[-1] for phone in from_ipa(library().phonemes(word, _VOICE)) if phone[:-1] in VOWELS)
    return "0" * len(pattern) if word in _UNSTRESSED else pattern


def _stressed(phones: Sequence[str], pattern: str) -> tuple[str, ...]:
    """The dictionary in the pocketsphinx wheel has lost its stress marks; they are put back."""
    vowels = [number for number, phone in enumerate(phones) if phone in VOWELS]
    if len(pattern) != len(vowels):
        # A syllable more or less: the main stress stays where it is, counted from the nearer end.
        main = max(pattern.find("1"), 0)
        if main > len(pattern) // 2:
            main = max(len(vowels) - (len(pattern) - main), 0)
        pattern = "".join("1" if number == main else "0" for number in range(len(vowels)))
    marks = dict(zip(vowels, pattern, strict=True))
    return tuple(phone + marks.get(number, "") for number, phone in enumerate(phones))
