"""Voices that exist for one test, in the real file formats: what they say can be read from the audio.

The graphs (tests/fixtures/voices) say the symbol with id n as a tone of n + 1 periods in each of its frames.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.catalogue.spec import ModelSpec
from sidecar.runner.adapters import make_adapter
from tests.product import ROOT

GRAPHS = ROOT / "tests" / "fixtures" / "voices"
PIPER_HOP, PIPER_RATE, PIPER_SILENT = 256, 22_050, 3
KOKORO_HOP, KOKORO_RATE, KOKORO_SILENT = 600, 24_000, 16
# The order is that of Piper's own map for its first symbols; the ids are smaller, so that the tones stay apart.
_PIPER_SYMBOLS = "_^$ !',-.:;?abcdefhijklmnopqrstuvwxyzæçðøħŋœɐɑɒɔɕəɚɛɜɡɪɫɹɾʃʊʌʒʔʲˈˌːθᵻ\u0303"
# Kokoro's own ids for the first sixteen, of which most are punctuation; the rest is numbered through.
_KOKORO_SYMBOLS = '$;:,.!?—…"()“” \u0303' + "AIOQSTWYᵊabcdfhijklmnopqrstuvwxyzæðŋœɑɒɔəɛɜɡɪɹʃʊʌʒʔʤʧˈˌːθᵻ"


def piper_ids() -> dict[str, list[int]]:
    return {symbol: [index] for index, symbol in enumerate(_PIPER_SYMBOLS)}


def kokoro_ids() -> dict[str, int]:
    # Id 0 and everything up to KOKORO_SILENT is silence.
    return {symbol: index for index, symbol in enumerate(_KOKORO_SYMBOLS)}


def piper_files(speakers: tuple[str, ...] = (), **config: Any) -> dict[str, bytes]:
    """A Piper voice as in its repository."""
    described = {
        "dataset": "tiny",
        "audio": {"sample_rate": PIPER_RATE, "quality": "medium"},
        "espeak": {"voice": "en-us"},
        "language": {"code": "en_US", "family": "en"},
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
        "phoneme_type": "espeak",
        "phoneme_map": {},
        "phoneme_id_map": piper_ids(),
        "num_symbols": 256,
        "num_speakers": max(1, len(speakers)),
        "speaker_id_map": {name: index for index, name in enumerate(speakers)},
    } | config
    name = "en/en_US/tiny/medium/en_US-tiny-medium.onnx"
    graph = (GRAPHS / "piper.onnx").read_bytes()
    return {name: graph, f"{name}.json": json.dumps(described, ensure_ascii=False).encode()}


def without_durations(files: dict[str, bytes]) -> dict[str, bytes]:
    """A Piper voice whose graph tells no times: another operator in their place, which leaves whole numbers alone."""
    return {path: content.replace(b"\x22\x04Ceil", b"\x22\x04Relu") for path, content in files.items()}


def kokoro_files(**voices: float) -> dict[str, bytes]:
    """A Kokoro repository; each voice is as loud as said, and a little less for every symbol of the sentence."""
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": kokoro_ids(), "unk_token": "$"}}
    files = {
        "config.json": b'{\n  "model_type": "style_text_to_speech_2"\n}',
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "onnx/model.onnx": (GRAPHS / "kokoro.onnx").read_bytes(),
    }
    fading = 1 - np.arange(510, dtype="<f4")[:, None, None] / 1000
    for name, loudness in (voices or {"af_heart": 0.5, "am_adam": 0.25, "bf_emma": 0.4, "jf_alpha": 0.4}).items():
        files[f"voices/{name}.bin"] = (loudness * fading * np.ones((510, 1, 256), dtype="<f4")).astype("<f4").tobytes()
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def load_voice(runtime: str, folder: Path, files: dict[str, bytes]) -> Any:
    """The runtime's adapter with the model of these files loaded."""
    write(folder, files)
    entry = {"id": "tiny", "title": "t", "capabilities": ["tts"], "runtime": runtime, "licence": "MIT"}
    place = {"folder": str(folder), "files": [{"path": path} for path in files]}
    adapter = make_adapter(ModelSpec.model_validate({**entry, **place}), 1, "auto")
    adapter.load(lambda *_: None)
    return adapter


def say(adapter: Any, text: str, voice: str | None = None, pause: bool = False, **delivery: Any) -> Speech:
    """One sentence, with its timings."""
    (speech,) = adapter.speak(text, voice, Delivery(**delivery), pause=pause, timings=True)
    return speech


def heard(audio: Any, hop: int) -> list[int]:
    """The id that each frame of the audio says; -1 for silence."""
    frames = audio[: len(audio) // hop * hop].reshape(-1, hop).astype(np.float64)
    spectra = np.abs(np.fft.rfft(frames, axis=1))
    loud = np.abs(frames).max(axis=1) > 100
    return [int(index) - 1 if is_loud else -1 for index, is_loud in zip(spectra.argmax(axis=1), loud, strict=True)]


def said(audio: Any, hop: int) -> list[int]:
    """The ids in their order, each once for as long as it lasts, without the silence."""
    frames = heard(audio, hop)
    return [frame for before, frame in zip([-1, *frames], frames, strict=False) if frame not in (-1, before)]
