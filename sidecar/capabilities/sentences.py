"""Text to sentences, as it comes: for speech that begins before the last word of a text is known.

Rules and a short list of abbreviations, no model: what is lost against one is a pause at the wrong place now and then.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

LIMIT = 400
"""Longest sentence (letters); a longer one is cut at the clause, else the word, nearest to its end."""

_LOOK_AHEAD = 40
_SPELLED = {"So": 16, "Sm": 6, "Sc": 6, "Sk": 6, "Pc": 6}  # by Unicode category; else 1

# Followed by a name or number, so never the end of a sentence.
_TITLES = frozenset(
    """mr mrs ms mx dr prof st sr sra jr rev fr hon gen col maj capt cpt lt sgt cpl adm cmdr gov sen rep pres supt mme
    mlle hr fig figs no nos nr vol vols ch sec eq pp art vs cf viz al approx ca dept est ext tel""".split()  # noqa: SIM905
)
# The end of a sentence only if the next word cannot go on with it.
_ABBREVIATIONS = frozenset(
    """etc inc ltd co corp bros llc plc gmbh ave blvd rd mt ft hwy a.m p.m am pm e.g i.e z.b d.h u.a o.ä usw bzw ph.d
    m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun min max sq
    oz lb lbs kg km cm mm hrs mins secs""".split()  # noqa: SIM905
)
_STARTERS = frozenset(
    """the a an he she it i we you they this that these those there then but and so or in on at for from when while if
    as after before however my his her its our your their what who why how where yes no not please""".split()  # noqa: SIM905
)
_END = re.compile(
    r"""(?P<full>[。！？｡؟۔।॥։]+|(?:\.{3,}|…)[.!?]*|[.!?]+)   # what ends a sentence
        (?P<close>["'”’»」』）)\]›]*)                            # and what closes round it
      | (?P<line>\n)                                           # or a line, if what follows shows it""",
    re.VERBOSE,
)
_INSIDE_WORDS = re.compile("[\xad\u2060\ufeff]")
_UNSPEAKABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ue000-\uf8ff\ufff0-\uffff\U000e0000-\U0010ffff]"
)
_WIDE_END = re.compile(r"[。！？｡।॥։]")
_CLAUSES = (re.compile(r"[;:—–)\]”»]\s|[；：]"), re.compile(r",\s|[，、]"), re.compile(r"\s"))
_NEW_ITEM = re.compile(r"[^\S\n]*\n|\s*(?:[-*•–]|\d{1,3}[.)])\s")  # a blank line, or a list's next line


class Splitter:
    """Takes a text in pieces of any size and gives out its sentences, the same ones however it was cut."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._text = ""

    def feed(self, text: str) -> Iterator[str]:
        """The sentences that `text` completes. One is complete when the beginning of the next is known."""
        self._text += text
        return self._take(final=False)

    def flush(self) -> Iterator[str]:
        """What is left, when no more text comes."""
        return self._take(final=True)

    def _take(self, final: bool) -> Iterator[str]:
        while (end := self._next(final)) is not None:
            sentence = " ".join(self._text[:end].split())
            self._text = self._text[end:]
            if sentence:
                yield sentence

    def _next(self, final: bool) -> int | None:
        """Where the first sentence ends, or None while that is not known."""
        self._text = self._text.lstrip()
        text = self._text
        if not text:
            return None
        limit = _limit(text, self._limit)
        for match in _END.finditer(text, 0, limit + _LOOK_AHEAD):
            if match.end() > limit:
                break
            ends = _ends(text, match, final)
            if ends is None:
                return None
            if ends:
                return match.end()
        if len(text) > limit + (0 if final else _LOOK_AHEAD):
            return _cut(text, limit)
        return len(text) if final else None


def split(text: str, limit: int = LIMIT) -> Iterator[str]:
    """The sentences of a whole text, one after the other, none longer than `limit` characters."""
    splitter = Splitter(limit)
    yield from splitter.feed(text)
    yield from splitter.flush()


def clean(text: str) -> str:
    """Without what no voice can say and no library should see: control characters, lone surrogates, marks of order.

    Joiners stay: they belong to words in several scripts, and to emoji.
    """
    return _UNSPEAKABLE.sub(" ", _INSIDE_WORDS.sub("", unicodedata.normalize("NFC", text)))


def _limit(text: str, limit: int) -> int:
    """How many characters take as long to say as `limit` letters."""
    weight = 0
    for index, character in enumerate(text[:limit]):
        weight += _weight(character)
        if weight > limit:
            return max(1, index)
    return limit


@lru_cache(maxsize=4096)
def _weight(character: str) -> int:
    """Letters that take as long: a digit is a word, an emoji a phrase. (eSpeak NG drops what is over 1000 phonemes.)"""
    category = unicodedata.category(character)
    if unicodedata.east_asian_width(character) in "WF" and category.startswith("L"):
        return 3
    return 4 if category == "Nd" else _SPELLED.get(category, 1)


def _cut(text: str, limit: int) -> int:
    """The best place to break a sentence that has no end in sight: late, at a clause if there is one."""
    for pattern in _CLAUSES:
        ends = [match.end() for match in pattern.finditer(text, limit // 3, limit)]
        if ends:
            return ends[-1]
    return limit


def _ends(text: str, match: re.Match[str], final: bool) -> bool | None:
    """Whether a sentence ends at `match`; None while what follows is not known."""
    rest = text[match.end() :]
    if match["line"] is not None:
        known = final or len(rest.split(None, 1)) > 1
        return bool(_NEW_ITEM.match(rest)) if known else None
    if _WIDE_END.match(match["full"]):
        return None if not rest and not final else True
    following = rest.lstrip()
    if not following:
        return True if final else None
    if not rest[0].isspace():
        return unicodedata.east_asian_width(rest[0]) in "WF"
    word = re.match(r"[^\s.,;:!?]*", following)
    assert word is not None
    if not final and word.end() == len(following) and len(following) < _LOOK_AHEAD:
        return None
    return _goes_not_on(text[: match.start()], match["full"], following, word[0])


def _goes_not_on(before: str, mark: str, following: str, word: str) -> bool:
    """Whether the next word begins a sentence."""
    if following[0].islower():
        return False
    if mark != ".":
        return True
    last = before.rsplit(None, 1)[-1].lstrip("\"'“‘«([") if before.strip() else ""
    if last.isdigit() and last == before.strip():  # "1. First of all"
        return False
    if last.lower() in _TITLES:
        return word.lower() in _STARTERS and last.lower() not in ("mr", "mrs", "ms", "dr", "prof")
    initials = re.fullmatch(r"(?:\w\.)*\w", last) is not None and not last.isdigit()
    if initials or last.lower() in _ABBREVIATIONS:
        return word.lower() in _STARTERS
    return True
