"""Two hundred things that are sent as audio and are none."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.sound import encode, tone, wav, wav_float

_HOURS_BYTES = 3 * 3600 * 16_000 * 2


def broken(trap: str, secret: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content. `trap` is an address that nobody may ask for, `secret` a sound file nobody may open."""
    yield from _truncated()
    yield from _wrong_headers()
    yield from _wrong_samples()
    yield from _other_things()
    yield from _tricks(trap, secret)
    yield from _random()


def _truncated() -> Iterator[tuple[str, bytes]]:
    sound = tone(2.0, rate=44_100)
    whole = {
        "wav": wav(sound, 44_100),
        "float wav": wav_float(sound, 44_100),
        "flac": encode(sound, "flac", "flac", 44_100),
        "m4a": encode(sound, "ipod", "aac", 44_100),
    }
    for name, data in whole.items():
        for share in (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9):
            yield f"{name} cut to {share:g}", data[: int(len(data) * share)]
    for name, container, codec, rate in (
        ("mp3", "mp3", "libmp3lame", 44_100),
        ("opus", "ogg", "libopus", 48_000),
        ("webm", "webm", "libopus", 48_000),
        ("aac", "adts", "aac", 44_100),
        ("aiff", "aiff", "pcm_s16be", 44_100),
        ("caf", "caf", "pcm_s16le", 44_100),
    ):
        data = encode(tone(2.0, rate=rate), container, codec, rate)
        for size in (1, 2, 3, 4, 8, 12, 16, 24, 32):
            yield f"{name} cut to {size} bytes", data[:size]
    for size in range(1, 45, 3):
        yield f"wav cut to {size} bytes", whole["wav"][:size]


def _wrong_headers() -> Iterator[tuple[str, bytes]]:
    good = wav(tone(0.5))
    for name, at, form, value in (
        ("no channels", 22, "<H", 0),
        ("65535 channels", 22, "<H", 65_535),
        ("100 channels", 22, "<H", 100),
        ("rate 0", 24, "<I", 0),
        ("rate 1", 24, "<I", 1),
        ("rate 4294967295", 24, "<I", 2**32 - 1),
        ("rate 2147483647", 24, "<I", 2**31 - 1),
        ("rate 10 MHz", 24, "<I", 10_000_000),
        ("unknown codec", 20, "<H", 0x7777),
        ("MPEG in name only", 20, "<H", 0x0055),
        ("codec 0", 20, "<H", 0),
        ("0 bits", 34, "<H", 0),
        ("13 kinds of bits", 34, "<H", 999),
        ("three hours", 40, "<I", _HOURS_BYTES),
        ("twenty-nine minutes", 40, "<I", 29 * 60 * 32_000),
        ("two gigabytes", 40, "<I", 0x7FFE0000),
        ("fmt chunk of 4 GB", 16, "<I", 2**32 - 1),
        ("fmt chunk of 0 bytes", 16, "<I", 0),
    ):
        data = bytearray(good)
        struct.pack_into(form, data, at, value)
        yield f"wav with {name}", bytes(data)
    flac = bytearray(encode(tone(1.0), "flac", "flac", 16_000))
    flac[21:26] = bytes([flac[21] & 0xF0, *struct.pack(">I", 3 * 3600 * 16_000)])
    yield "flac with three hours in its header", bytes(flac)
    for size in (2_046_820_378, 0xFFFFFFF0):  # the library would allocate what a list of titles says it has
        titles = struct.pack("<4sI4s4sI", b"LIST", size, b"INFO", b"INAM", size - 100)
        yield f"wav with titles of {size} bytes", good[:36] + titles + good[36:]
    yield "wav without samples", wav(np.empty(0, np.float32))
    yield "float wav without samples", wav_float(np.empty(0, np.float32))
    yield "wav without a data chunk", good[:36]
    yield "RIFF that is no WAVE", good[:8] + b"AVI " + good[12:]
    yield "swapped magic", b"FFIR" + good[4:]
    for name in ("flac", "ogg"):
        magic = {"flac": b"fLaC", "ogg": b"OggS"}[name]
        yield f"{name} in name only", magic + bytes(2000)


def _wrong_samples() -> Iterator[tuple[str, bytes]]:
    for value in (np.nan, np.inf, -np.inf):
        for at in (0, 8000, -1):
            sound = tone(1.0)
            sound[at] = value
            yield f"float wav with {value} at {at}", wav_float(sound)
        yield f"float wav of {value} at 44.1 kHz", wav_float(np.full(44_100, value, np.float32), 44_100)


def _other_things() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    text = "This is a text file that somebody named speech.wav.\n"
    for count in (1, 20, 2000):
        yield f"text × {count}", (text * count).encode()
        yield f"UTF-16 text × {count}", (text * count).encode("utf-16")
    for size in (1, 2, 100, 5000, 300_000):
        yield f"{size} zeros", bytes(size)
        yield f"{size} times FF", b"\xff" * size
    picture = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")
    yield from (
        ("png", picture),
        ("jpeg", b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + bytes(300)),
        ("gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"),
        ("pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"),
        ("zip", b"PK\x03\x04" + bytes(100)),
        ("elf", b"\x7fELF\x02\x01\x01" + bytes(100)),
        ("html", b"<!doctype html><html><body>404</body></html>"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("json", b'{"error": "not found"}'),
        ("subtitles", b"1\n00:00:00,000 --> 00:00:02,000\nHello\n"),
        ("webvtt", b"WEBVTT\n\n00:00.000 --> 00:02.000\nHello\n"),
        ("midi", b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0MTrk\x00\x00\x00\x04\x00\xff\x2f\x00"),
        ("pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94."),
        ("lyrics", b"[00:01.00]la la la\n[00:02.00]la\n"),
    )


def _tricks(trap: str, secret: Path) -> Iterator[tuple[str, bytes]]:
    targets = {
        "http": trap,
        "file": secret.as_uri(),
        "path": str(secret),
        "concat": f"concat:{secret}",
        "subfile": f"subfile,,start,0,end,0,,:{secret}",
        "crypto": f"crypto:{secret}",
        "tcp": trap.replace("http:", "tcp:"),
        "data": "data:audio/wav;base64,UklGRg==",
    }
    for name, target in targets.items():
        yield f"m3u8 of {name}", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()
        yield f"m3u of {name}", f"#EXTM3U\n{target}\n".encode()
        yield f"ffconcat of {name}", f"ffconcat version 1.0\nfile '{target}'\n".encode()
        yield f"pls of {name}", f"[playlist]\nFile1={target}\nNumberOfEntries=1\n".encode()
        yield f"bare {name}", target.encode()
        yield f"reference movie of {name}", _reference_movie(target)
    session = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 5004 RTP/AVP 0\r\n"
    yield "session description", session.encode()
    dash = f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{trap}</BaseURL></MPD>'
    yield "dash", dash.encode()
    yield "rtsp", b"RTSP/1.0 200 OK\r\n\r\n"
    yield "lavfi", b"sine=frequency=440:duration=5"


def _reference_movie(target: str) -> bytes:
    def atom(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    address = target.encode() + b"\0"
    reference = atom(b"rdrf", struct.pack(">I4sI", 0, b"url ", len(address)) + address)
    return atom(b"ftyp", b"qt  \0\0\0\0qt  ") + atom(b"moov", atom(b"rmra", atom(b"rmda", reference)))


def _random() -> Iterator[tuple[str, bytes]]:
    chance = random.Random(6)
    for number in range(40):
        yield f"random bytes {number}", chance.randbytes(chance.choice([10, 100, 1000, 10_000, 100_000]))
    for magic in (
        b"RIFF",
        b"fLaC",
        b"OggS",
        b"ID3\x04",
        b"\x1aE\xdf\xa3",
        b"FORM",
        b"caff",
        b"\xff\xfb\x90\x64",
        b"\0\0\0\x20ftypM4A ",
    ):
        for number in range(3):
            yield f"{magic!r} and random bytes {number}", magic + chance.randbytes(20_000)
