"""What a neural voice reads: the phonemes of a sentence with its punctuation, and which word each belongs to."""

import re
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from sidecar.capabilities.tts import PUNCTUATION, Span
from sidecar.runner.espeak import Espeak
from sidecar.runner.readings import read_words

NO_WORD = -1
# Punctuation, but not that of a number, an address or, as it is one sentence, an abbreviation.
_MARKS = re.compile(
    r"""([;!?¡¿…"“”«»()—]+|\.{2,}|[,:]+(?=\s|$|["”»)])|\.(?=["”»)]*\s*$)|(?<=\s)[-–]+(?=\s)|[。，！？、；：]+)"""
)
_STRESS = "ˈˌ"


class Transcript(NamedTuple):
    """Symbols, one character each; for each the index of its word, NO_WORD for spaces and punctuation."""

    symbols: str
    owners: list[int]
    words: list[str]


def transcribe(
    sentence: str, espeak: Espeak, voice: str, *, tie: str = "", convert: Callable[[str], str] = str, timings: bool
) -> Transcript:
    """`convert` turns eSpeak's IPA into the model's alphabet. Owners and words are found only for `timings`."""
    symbols: list[str] = []
    owners: list[int] = []
    words: list[str] = []

    def add(text: str, owned: Sequence[int]) -> None:
        symbols.append(text)
        owners.extend(owned)

    for index, part in enumerate(_MARKS.split(sentence)):
        if index % 2:
            add(part, [NO_WORD] * len(part))
        elif tokens := part.split():
            aloud = read_words(tokens) if voice.startswith("en") else tokens
            ipa = convert(espeak.phonemes(" ".join(aloud), voice, tie)).strip()
            before, after = part[0].isspace(), part[-1].isspace()
            owned = [NO_WORD] * len(ipa)
            if timings:
                alone = [convert(espeak.phonemes(token, voice, tie)).strip() for token in aloud]
                owned = [owner + len(words) if owner != NO_WORD else NO_WORD for owner in _owners(ipa, alone)]
                words += [token.strip(PUNCTUATION) for token in tokens]
            add(" " * before + ipa + " " * after, [NO_WORD] * before + owned + [NO_WORD] * after)
        elif part:
            add(" ", [NO_WORD])
    return Transcript("".join(symbols), owners, words)


def portions(transcript: Transcript, limit: int) -> Iterator[Transcript]:
    """The transcript in parts of at most `limit` symbols, cut between two words if there is a place."""
    symbols, owners, words = transcript
    while symbols:
        end = len(symbols)
        if end > limit:
            end = symbols.rfind(" ", 0, limit) + 1 or limit
        yield Transcript(symbols[:end], owners[:end], words)
        symbols, owners = symbols[end:], owners[end:]


def known(transcript: Transcript, alphabet: Container[str], alike: Mapping[str, str]) -> Transcript:
    """Without symbols that the model was never taught; some have one that is `alike`."""
    kept = []
    for symbol, owner in zip(transcript.symbols, transcript.owners, strict=True):
        known_as = symbol if symbol in alphabet else alike.get(symbol, "")
        if known_as and known_as in alphabet:
            kept.append((known_as, owner))
    return Transcript("".join(symbol for symbol, _ in kept), [owner for _, owner in kept], transcript.words)


def is_wordless(transcript: Transcript) -> bool:
    """Whether there is nothing but punctuation in it."""
    return not any(symbol.isalnum() for symbol in transcript.symbols)


def _owners(ipa: str, alone: list[str]) -> list[int]:
    """For each symbol the word it comes from: what is said together is compared with each word said alone."""
    groups = ipa.split(" ")
    owners: list[int] = []
    if len(groups) == len(alone):
        for index, group in enumerate(groups):
            owners += [NO_WORD] * bool(index) + [index] * len(group)
        return owners
    letters = "".join(alone)
    sources = [index for index, text in enumerate(alone) for _ in text]
    matched: dict[int, int] = {}
    for start, there, size in SequenceMatcher(None, ipa, letters, autojunk=False).get_matching_blocks():
        matched |= {start + offset: sources[there + offset] for offset in range(size)}
    last = 0
    for index, symbol in enumerate(ipa):
        last = max(last, matched.get(index, last))  # words follow each other: a match backwards is an accident
        owners.append(NO_WORD if symbol == " " else last)
    return owners


def timed(
    transcript: Transcript, durations: Sequence[float], name: Callable[[str], str] = str
) -> tuple[list[Span], list[Span]]:
    """Words and phonemes from the duration of every symbol (seconds). Marks of stress and length join their sound."""
    words: dict[int, Span] = {}
    phonemes: list[Span] = []
    now_s = 0.0
    pending: tuple[str, float] | None = None
    for symbol, owner, duration_s in zip(transcript.symbols, transcript.owners, durations, strict=True):
        start_s, now_s = now_s, now_s + duration_s
        if owner == NO_WORD:
            pending = None
            continue
        word = words.get(owner) or Span(transcript.words[owner], start_s, now_s)
        words[owner] = word._replace(end_s=now_s)
        if symbol in _STRESS:
            pending = symbol, start_s
        elif phonemes and pending is None and _modifies(symbol):
            phonemes[-1] = Span(phonemes[-1].text + symbol, phonemes[-1].start_s, now_s)
        else:
            mark, begin_s = pending or ("", start_s)
            phonemes.append(Span(mark + name(symbol), begin_s, now_s))
            pending = None
    return [word for word in words.values() if word.text], phonemes


def _modifies(symbol: str) -> bool:
    return unicodedata.category(symbol) in ("Lm", "Mn") and symbol not in _STRESS
