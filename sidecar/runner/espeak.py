"""eSpeak NG's shared library (in the espeakng-loader wheel) by ctypes: speech with its own timings, and phonemes.

The library keeps one state per process: everything here goes through one lock. Its interface is speak_lib.h,
revision 12 (eSpeak NG 1.52).
"""

import ctypes
import os
import re
import threading
from bisect import bisect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import espeakng_loader
import numpy as np

from sidecar.catalogue.voices import espeak_name
from sidecar.errors import InferenceError, InputError, ModelLoadError
from sidecar.runner.espeak_text import tame

WPM = 175
"""Words a minute at speed 1."""
WPM_RANGE = (80, 440)
"""What the synthesiser itself can do. Above it a time stretcher takes over, and the times of its events drift."""

_SYNCHRONOUS = 2
_PHONEME_EVENTS_IN_IPA = 0x1 | 0x2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_END_PAUSE = 0x1000
_IPA = 0x2
_TIE = 0x80
_RATE, _VOLUME, _PITCH = 1, 2, 3
_END, _PHONEME = 0, 7
# The library copies its data folder's path into 160 bytes, cut off without a word.
_LONGEST_PATH_BYTES = 140
_LANGUAGE_SWITCH = re.compile(r"\([a-z-]+\)")


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Sound(NamedTuple):
    """A phoneme as spoken: IPA (empty in a pause), first sample, and where in the text its word begins."""

    ipa: str
    sample: int
    position: int


class Utterance(NamedTuple):
    """int16 audio of shape (samples,) at `sample_rate`, and its sounds in order."""

    audio: Any
    sounds: list[Sound]


class Espeak:
    """The library, loaded. Use `library()`: there is one per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        try:
            self._c = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise ModelLoadError(f"the eSpeak NG library cannot be loaded: {error}") from None
        self._c.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._c.espeak_TextToPhonemes.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        self._c.espeak_Synth.argtypes = (
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        )
        data = _reachable(Path(espeakng_loader.get_data_path()))
        options = _PHONEME_EVENTS_IN_IPA | _DO_NOT_EXIT
        self.sample_rate: int = self._c.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), options)
        self._voice: str | None = None
        self._pieces: list[bytes] = []
        self._sounds: list[Sound] = []
        self._callback = _Callback(self._collect)  # kept: the library holds no reference of its own
        self._c.espeak_SetSynthCallback(self._callback)
        # A data folder that cannot be read shows itself at the first voice only.
        if self.sample_rate <= 0 or self._c.espeak_SetVoiceByName(b"en"):
            raise ModelLoadError(f"eSpeak NG cannot read its data in {espeakng_loader.get_data_path()}")

    def speak(
        self, text: str, voice: str, *, wpm: int = WPM, pitch: int = 50, volume: int = 100, pause: bool = False
    ) -> Utterance:
        """Say `text`: `pitch` 0 to 100, `volume` in per cent, `pause` adds the one that ends a sentence.

        SSML and phoneme codes in the text are read out, never obeyed. Raises InputError for an unknown voice,
        InferenceError.
        """
        bearable, spaces = tame(text)
        encoded = bearable.encode("utf-8", "replace").replace(b"\0", b" ")
        with self._lock:
            self._set_voice(voice)
            for parameter, value in ((_RATE, wpm), (_PITCH, pitch), (_VOLUME, volume)):
                self._c.espeak_SetParameter(parameter, value, 0)
            self._pieces, self._sounds = [], []
            flags = _UTF8 | (_END_PAUSE if pause else 0)
            status = self._c.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, flags, None, None)
            if status != 0:
                raise InferenceError(f"eSpeak NG gave up with status {status}")
            sounds = [each._replace(position=each.position - bisect(spaces, each.position)) for each in self._sounds]
            return Utterance(np.frombuffer(b"".join(self._pieces), dtype=np.int16), sounds)

    def phonemes(self, text: str, voice: str, tie: str = "") -> str:
        """IPA of `text` with stress marks, words divided by spaces. `tie` joins the letters of one phoneme."""
        encoded = tame(text)[0].encode("utf-8", "replace").replace(b"\0", b" ")
        mode = _IPA | (_TIE | ord(tie) << 8 if tie else 0)
        with self._lock:
            self._set_voice(voice)
            clauses = list(self._clauses(encoded, mode))
        return _LANGUAGE_SWITCH.sub("", " ".join(clause for clause in clauses if clause))

    def _clauses(self, encoded: bytes, mode: int) -> Iterator[str]:
        buffer = ctypes.create_string_buffer(encoded)
        pointer = ctypes.c_void_p(ctypes.addressof(buffer))
        before = None
        while pointer.value and pointer.value != before:
            before = pointer.value
            clause = self._c.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, mode)
            yield (clause or b"").decode("utf-8", "replace").strip()

    def _set_voice(self, voice: str) -> None:
        if voice != self._voice:
            self._voice = None
            # The library's own search takes "klingon" for Kalaallisut (kl), and unknown variants for none.
            name = espeak_name(voice)
            if name is None or self._c.espeak_SetVoiceByName(name.encode()):
                raise InputError(f"eSpeak NG has no voice {voice!r}")
            self._voice = voice

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._pieces.append(ctypes.string_at(samples, count * 2))
        index = 0
        while events[index].type != _END:
            event = events[index]
            index += 1
            if event.type == _PHONEME:
                # Eight bytes, which may end in the middle of a character.
                name = event.id.string.decode("utf-8", "ignore")
                if not name.startswith("("):  # a switch to another language, "(en)"
                    self._sounds.append(Sound(name, event.sample, max(0, event.text_position - 1)))
        return 0


@cache
def library() -> Espeak:
    """The one instance of this process. Raises ModelLoadError."""
    return Espeak()


def _reachable(data: Path) -> Path:
    """The data folder under a path that the library can take: short, and on Windows in ASCII."""
    path = str(data)
    if len(os.fsencode(path)) <= _LONGEST_PATH_BYTES and path.isascii():
        return data
    os.chdir(data.parent)
    return Path(data.name)
