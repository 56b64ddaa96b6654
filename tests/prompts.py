"""Real speech with its words: the prompts of Debian's asterisk-core-sounds-en-wav (one voice, 8 kHz)."""

import gzip
import re
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.server.pcm import decode_wav, find_wav
from tests.product import Product, cpu_s
from tests.sound import RATE, pcm16

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
WORDS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")


class Prompt(NamedTuple):
    path: Path
    text: str


def prompts(count: int, min_words: int = 4, max_words: int = 30) -> list[Prompt]:
    """`count` spoken sentences, spread over the alphabet of their names; skips where the packages are missing."""
    if not SOUNDS.is_dir() or not WORDS.is_file():
        pytest.skip("real speech is missing: apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en")
    found = []
    for line in gzip.decompress(WORDS.read_bytes()).decode().splitlines():
        name, _, text = line.strip().partition(": ")
        path = SOUNDS / f"{name}.wav"
        # Numerals and sounds in brackets have no spelling to compare with.
        if path.is_file() and re.fullmatch(r"[A-Za-z ,.'!?;:-]+", text) and min_words <= len(text.split()) <= max_words:
            found.append(Prompt(path, text))
    assert len(found) >= count
    return [found[number * len(found) // count] for number in range(count)]


def load(prompt: Prompt) -> Any:
    """Its sound: float32, mono, 16 kHz."""
    with open(prompt.path, "rb") as file:
        wav = find_wav(file)
        assert wav is not None
        return decode_wav(file, wav, 600.0, threading.Event()).samples


def plain(text: str) -> str:
    """Lower case, letters and apostrophes only, for word error rates."""
    return " ".join(re.sub(r"[^a-z' ]+", " ", text.lower().replace("-", " ")).split())


def hearing_s(product: Product, sound: Any) -> float:
    """Processor time that recognising `sound` takes on this machine."""

    def spent_s() -> float:
        return sum(map(cpu_s, product.runners()))

    assert product.call("POST", "/models/pocketsphinx-en-us/load", timeout_s=120).status == 200
    before_s = spent_s()
    body = {"audio": b64encode(pcm16(sound)).decode(), "sample_rate": RATE}
    assert product.call("POST", "/asr/transcribe", body, timeout_s=120).status == 200
    return spent_s() - before_s
