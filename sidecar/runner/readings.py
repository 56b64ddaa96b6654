"""How people read the figures of an English text, where eSpeak NG does otherwise ("dollar three point five")."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_MONEY = re.compile(r"([-−–]?)([$£€])(\d[\d,]*)(?:\.(\d+))?(k|m|bn?|tn?)?", re.IGNORECASE)
_UNITS = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
}
_MAGNITUDES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "t": "trillion", "tn": "trillion"}
_YEAR = re.compile(r"(1[1-9]|20)([1-9]\d)")
_DECADE = re.compile(r"(1[1-9]|20)?['’]?([2-9]0)['’]?s")
_DECADES = ("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
_TIME = re.compile(r"(\d{1,2}):0(\d)")
_NUMBERED = re.compile(r"#(\d+)")
_SHORT = {"No.": "number", "Nos.": "numbers", "vs.": "versus"}
_AFTER_NOON = re.compile(r"[ap]\.?m\.?", re.IGNORECASE)
# What stands round a word and is not read.
_WORD = re.compile(r"(?P<before>[^\w$£€#+−–'’-]*)(?P<core>.*?)(?P<after>[^\w%+]*)", re.DOTALL)


class Reading(NamedTuple):
    """A text as it is read aloud; where each of its words begins there (`said`) and in the original (`written`)."""

    text: str
    said: list[int]
    written: list[int]

    def place(self, position: int) -> int:
        """Where in the original the word is that has this place in the text."""
        index = bisect_right(self.said, position) - 1
        return self.written[index] if index >= 0 else 0


def read(text: str) -> Reading:
    """An English text with its figures as people read them; everything else keeps its letters."""
    found = list(re.finditer(r"\S+", text))
    aloud = read_words([match[0] for match in found])
    pieces: list[str] = []
    said: list[int] = []
    length = end = 0
    for match, word in zip(found, aloud, strict=True):
        pieces += [text[end : match.start()], word]
        said.append(length + match.start() - end)
        length, end = said[-1] + len(word), match.end()
    return Reading("".join([*pieces, text[end:]]), said, [match.start() for match in found])


def read_words(words: Sequence[str]) -> list[str]:
    """Words with the punctuation round them, each as it is read aloud."""
    parted = [_parted(word) for word in words]
    aloud = [ways[0] for ways in readings([core for _, core, _ in parted])]
    found = [before + core + after for (before, _, after), core in zip(parted, aloud, strict=True)]
    for index, (word, following) in enumerate(pairwise(words)):
        if word in _SHORT and (word == "vs." or following[0].isdigit()):
            found[index] = _SHORT[word]
    return found


def readings(words: Sequence[str]) -> list[list[str]]:
    """For each word, without punctuation, the ways it is read, the likeliest first: most as they are written."""
    found: list[list[str]] = []
    unit = ""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if unit:  # "$5 million"
            found.append([f"{word} {unit}"])
            unit = ""
        elif money := _MONEY.fullmatch(word):
            if not money[5] and following.lower() in _MAGNITUDES.values():
                unit = _UNITS[money[2]][1]
                found.append([f"{'minus ' * bool(money[1])}{money[3]}{'.' * bool(money[4])}{money[4] or ''}"])
            else:
                found.append([f"{'minus ' * bool(money[1])}{way}" for way in _amounts(*money.groups()[1:])])
        else:
            found.append(_figures(word, following))
    return found


def _amounts(sign: str, whole: str, part: str | None, magnitude: str | None) -> list[str]:
    one, many, small, smalls = _UNITS[sign]
    if magnitude:
        return [f"{whole}{'.' + part if part else ''} {_MAGNITUDES[magnitude.lower()]} {many}"]
    if part is not None and len(part) != 2:
        return [f"{whole}.{part} {many}"]
    unit = one if whole == "1" else many
    if part is None or part == "00":
        return [f"{whole} {unit}"]
    rest = str(int(part))
    change = f"{rest} {small if rest == '1' else smalls}"
    if whole == "0":
        return [change]
    return [f"{whole} {unit} and {change}", f"{whole} {unit} {rest}", f"{whole} {rest}"]


def _figures(word: str, following: str) -> list[str]:
    if year := _YEAR.fullmatch(word):
        return [f"{year[1]} {year[2]}", word]
    if decade := _DECADE.fullmatch(word):
        name = _DECADES[int(decade[2]) // 10 - 2]
        return [f"{decade[1]} {name}" if decade[1] else name]
    if numbered := _NUMBERED.fullmatch(word):
        return [f"number {numbered[1]}", word]
    if time := _TIME.fullmatch(word):
        if time[2] != "0":
            return [f"{time[1]} oh {time[2]}", word]
        ways = [time[1], f"{time[1]} o'clock", f"{time[1]} hundred", word]
        likeliest = 0 if _AFTER_NOON.fullmatch(following) else 1 if 0 < int(time[1]) <= 12 else 2
        return [ways.pop(likeliest), *ways]
    return [word]


def _parted(word: str) -> tuple[str, str, str]:
    parts = _WORD.fullmatch(word)
    assert parts is not None
    return parts["before"], parts["core"], parts["after"]
