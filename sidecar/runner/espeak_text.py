"""Text as the eSpeak NG library can bear it: some of what people write makes it leave its buffers and end the process.

Measured on 1.52: words of more than 160 bytes or 200 phonemes ("antiantianti…", "'s's's…"), and hyphens between a
punctuation mark or further hyphens and a letter (".-a", "---a").
"""

import re

# A hundred letters of the longest-winded word stay below both limits.
_LONGEST_WORD_BYTES = 100
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD_BYTES // 4},}}")
_HYPHENS = re.compile(r"-{2,}|(?<=[^\w\s])-(?!\d)")


def tame(text: str) -> tuple[str, list[int]]:
    """`text` with spaces in words that are too long, and where they are, in ascending order.

    Everything else keeps its place: hyphens become a dash and as many spaces as are left.
    """
    text = _HYPHENS.sub(lambda run: "—".ljust(len(run[0])), text)
    pieces: list[str] = []
    spaces: list[int] = []
    end = 0
    for word in _LONG_WORD.finditer(text):
        divided = " ".join(parts(word[0]))
        spaces += [word.start() + len(spaces) + place for place, letter in enumerate(divided) if letter == " "]
        pieces += [text[end : word.start()], divided]
        end = word.end()
    return "".join([*pieces, text[end:]]), spaces


def parts(word: str) -> list[str]:
    """A word in parts that are none too long."""
    found, size_bytes = [""], 0
    for letter in word:
        letter_bytes = len(letter.encode("utf-8", "replace"))
        if size_bytes + letter_bytes > _LONGEST_WORD_BYTES:
            found, size_bytes = [*found, ""], 0
        found[-1] += letter
        size_bytes += letter_bytes
    return found
