"""Speech whose phoneme times are known: eSpeak NG says when it made each sound."""

from typing import Any, NamedTuple

import numpy as np
import soxr

from sidecar.capabilities.phones import from_ipa
from sidecar.runner.espeak import library

RATE = 16_000
# Written for these tests alone; the aligner's constants come from other sentences.
SENTENCES = (
    "The library on the corner opens at nine and closes before dark.",
    "My grandmother keeps her recipes in a small blue box above the oven.",
    "Heavy clouds moved in from the west while we were still on the boat.",
    "Nobody in the room had expected such a short answer.",
    "He borrowed a ladder to fetch the ball from the garage roof.",
    "Please remind me to water the plants when we come back from the beach.",
    "The second question was much harder than the first one.",
    "A large brown dog waited patiently outside the supermarket.",
    "They built the bridge in less than two years, which surprised everybody.",
    "Could we move the meeting to Thursday, because I have a dentist appointment?",
    "The teacher drew a triangle, a circle and a very crooked square.",
    "Fresh bread and strong coffee make every morning better.",
    "She whispered the secret so quietly that no one else heard it.",
    "Our flight was delayed because of thick fog over the airport.",
    "If you push this button, the yellow light should start to flash.",
    "The judge thanked both witnesses for their patience.",
    "I found an old photograph of my parents behind the kitchen shelf.",
    "Six young men were pushing a van through the mud.",
    "The village choir practises every Wednesday in the church hall.",
    "You can measure the length of the table with this tape.",
)
VOICES = (("en-us", 130), ("en-us", 210), ("en-us+f3", 165), ("en-gb", 170))


class Known(NamedTuple):
    """float32 at 16 kHz, and the sounds: ARPABET without stress, and when each begins (s)."""

    samples: Any
    sounds: list[tuple[str, float]]


def say(text: str, voice: str = "en-us", wpm: int = 175) -> Known:
    """Speak `text`. A sound that is two phones in ARPABET has the time of the first alone."""
    said = library().speak(text, voice, wpm=wpm)
    rate = library().sample_rate
    samples = soxr.resample(said.audio.astype(np.float32) / 32768, rate, RATE)
    sounds = []
    for sound in said.sounds:
        phones = [phone.rstrip("012") for phone in from_ipa(sound.ipa)]
        if phones:
            sounds.append((phones[0], sound.sample / rate))
            sounds += [(phone, float("nan")) for phone in phones[1:]]
    return Known(np.ascontiguousarray(samples, np.float32), sounds)


def paired(said: list[str], found: list[str]) -> dict[int, int]:
    """Which sound of `found` is which of `said`: the cheapest alignment of the two, by edit distance."""
    rows, columns = len(said), len(found)
    cost = np.zeros((rows + 1, columns + 1))
    cost[:, 0], cost[0] = np.arange(rows + 1), np.arange(columns + 1)
    for row in range(rows):
        for column in range(columns):
            same = 0.0 if said[row] == found[column] else 0.9
            around = (cost[row, column] + same, cost[row, column + 1] + 1, cost[row + 1, column] + 1)
            cost[row + 1, column + 1] = min(around)
    pairs = {}
    row, column = rows, columns
    while row and column:
        same = 0.0 if said[row - 1] == found[column - 1] else 0.9
        if cost[row, column] == cost[row - 1, column - 1] + same:
            row, column = row - 1, column - 1
            pairs[row] = column
        elif cost[row, column] == cost[row - 1, column] + 1:
            row -= 1
        else:
            column -= 1
    return pairs
