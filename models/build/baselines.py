"""Keyword tables, to show what the model is worth beside them. Written from the label descriptions, not the data."""

import re
from pathlib import Path

import tomllib

EMOTION_WORDS = {
    "anger": "angry anger mad furious rage livid annoyed annoying irritated frustrated hate outrageous unfair fed_up "
    "ridiculous unacceptable pissed fuming how_dare sick_of",
    "disgust": "disgusting disgusted disgust gross yuck ew eww nasty revolting vile nauseous gag vomit puke sickening "
    "repulsive filthy stinks stench mould sick rotten creepy sleazy",
    "fear": "afraid scared fear terrified frightened worried worry anxious anxiety nervous panic dread scary "
    "terrifying danger help horror nightmare what_if",
    "joy": "happy joy glad love lovely great wonderful amazing excited thank thanks delighted proud yay awesome "
    "fantastic fun laugh smile best relieved perfect grateful",
    "sadness": "sad cry cried crying tears miss lonely alone lost grief heartbroken depressed unhappy sorry "
    "disappointed hopeless funeral died death goodbye regret hurt",
    "surprise": "surprised surprise wow unexpected unbelievable shocked shock astonished no_way omg whoa "
    "cannot_believe can't_believe really suddenly never_expected speechless wait what",
}
# The product has this table as a model; one copy of it.
_BASELINE = Path(__file__).resolve().parent.parent / "catalogue" / "baseline.toml"
BACKCHANNELS = tomllib.loads(_BASELINE.read_text(encoding="utf-8"))["options"]["phrases"]


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[a-z'-]+", text.lower().replace("’", "'")))


def _phrases(table: str) -> list[str]:
    return [phrase.replace("_", " ") for phrase in table.split()]


def emotion(text: str) -> str:
    """The emotion with the most keywords in the text, the first one named on a tie, neutral without any."""
    padded = f" {_normal(text)} "
    counts = {label: sum(f" {word} " in padded for word in _phrases(words)) for label, words in EMOTION_WORDS.items()}
    best = max(counts, key=lambda label: counts[label])
    return best if counts[best] else "neutral"


def backchannel(utterance: str) -> bool:
    """True if nothing but (repeated) backchannel phrases is said; the previous utterance is not looked at."""
    rest = f" {_normal(utterance)} "
    if not rest.strip():
        return False
    for phrase in sorted(BACKCHANNELS, key=len, reverse=True):
        while f" {phrase} " in rest:
            rest = rest.replace(f" {phrase} ", " ")
    return not rest.strip()
