"""Neural voices as a user gets them: from the hub into the cache, loaded, speaking, and taken away again."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.catalogue.catalogue import BUILT_IN
from tests.hub import Hub
from tests.product import Product, until
from tests.voices import (
    KOKORO_HOP,
    KOKORO_RATE,
    PIPER_HOP,
    PIPER_RATE,
    kokoro_files,
    kokoro_ids,
    piper_files,
    piper_ids,
    said,
)

pytestmark = pytest.mark.e2e

PIPER = """
id = "tiny-piper"
title = "a Piper voice of one test"
capabilities = ["tts"]
runtime = "piper"
licence = "MIT"
preference = 60
languages = ["en-US"]
files = [
    { path = "en/en_US/tiny/medium/en_US-tiny-medium.onnx" },
    { path = "en/en_US/tiny/medium/en_US-tiny-medium.onnx.json" },
]

[source]
repo = "acme/piper-voices"
"""


@pytest.fixture
def product(launch: Callable[..., Product], hub: Hub, tmp_path: Path) -> Product:
    """A home whose catalogue has a Piper voice, and Kokoro as the built-in entry has it, unpinned."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "piper.toml").write_text(PIPER, encoding="utf-8")
    built_in = (BUILT_IN / "kokoro-82m.toml").read_text(encoding="utf-8")
    kept = [line for line in built_in.splitlines() if not line.startswith(("size", "sha256", "revision", "smaller"))]
    text = "\n".join(kept).replace('id = "kokoro-82m"', 'id = "tiny-kokoro"')
    (folder / "kokoro.toml").write_text(text.replace("onnx-community/Kokoro-82M-v1.0-ONNX", "acme/kokoro"), "utf-8")
    environment = {"SIDECAR_CATALOGUE": str(folder), "HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    return launch(**environment)


def download(product: Product, model: str) -> None:
    assert product.call("POST", f"/models/{model}/download").status == 202
    until(
        lambda: product.call("GET", f"/models/{model}").json()["state"] in ("available", "ready"),
        f"{model} to arrive: {product.call('GET', f'/models/{model}').json()}",
    )


def pcm(answer: Any) -> Any:
    assert answer.status == 200, answer.body
    with wave.open(io.BytesIO(answer.body)) as file:
        return np.frombuffer(file.readframes(10**9), "<i2")


def letters(audio: Any, hop: int, ids: dict[str, int]) -> str:
    names = {index: symbol for symbol, index in ids.items()}
    first = int(np.flatnonzero(np.abs(audio.astype(int)) > 100)[0])
    return "".join(names[index] for index in said(audio[max(0, first - 1) :], hop))


def active(product: Product) -> str:
    return str(product.call("POST", "/tts/synthesize", {"text": "Hi."}).headers["x-model"])


def test_a_piper_voice_arrives_takes_over_and_leaves(product: Product, hub: Hub) -> None:
    hub.add("acme/piper-voices", piper_files())
    assert active(product) == "espeak-ng"
    download(product, "tiny-piper")
    until(lambda: active(product) == "tiny-piper", "the better voice to take over")
    answer = product.call("POST", "/tts/synthesize", {"text": "Hello, Peter."})
    assert answer.headers["x-sample-rate"] == str(PIPER_RATE)
    assert answer.headers["x-voice"] == "en_US-tiny-medium"
    ids = {symbol: index for symbol, (index,) in piper_ids().items()}
    assert letters(pcm(answer), PIPER_HOP, ids) == "həlˈoʊ,pˈiːɾɚ."
    timed = product.call("POST", "/tts/synthesize?timings=phonemes", {"text": "Hello, Peter."}).json()
    assert [word["word"] for word in timed["words"]] == ["Hello", "Peter"] and timed["model"] == "tiny-piper"
    openai = {"model": "tts-1", "voice": "alloy", "input": "Hi.", "response_format": "pcm"}
    spoken = product.call("POST", "/v1/audio/speech", openai)
    assert spoken.headers["x-voice"] == "en_US-tiny-medium" and spoken.headers["x-sample-rate"] == "24000"
    # A voice that only another model has is that model's to speak with.
    assert product.call("POST", "/tts/synthesize", {"text": "Hallo.", "voice": "de"}).headers["x-model"] == "espeak-ng"
    assert product.call("POST", "/tts/synthesize", {"text": "Ciao.", "language": "it"}).headers["x-voice"] == "it"
    voices = product.call("GET", "/tts/voices").json()["voices"]
    assert voices[0] == {
        **{"id": "en_US-tiny-medium", "name": "Tiny", "language": "en-US", "gender": None, "model": "tiny-piper"}
    }
    assert product.call("DELETE", "/models/tiny-piper").status == 200
    assert active(product) == "espeak-ng"


def test_kokoro_arrives_with_its_voices(product: Product, hub: Hub) -> None:
    hub.add("acme/kokoro", kokoro_files(af_heart=0.5, am_onyx=0.4, jf_alpha=0.3))
    download(product, "tiny-kokoro")
    folder = next((product.home / "cache" / "models" / "tiny-kokoro").glob("*/voices"))
    assert sorted(path.name for path in folder.iterdir()) == ["af_heart.bin", "am_onyx.bin"], "no more than is usable"
    until(lambda: active(product) == "tiny-kokoro", "the better voice to take over")
    answer = product.call("POST", "/tts/synthesize", {"text": "Hello now."})
    assert (answer.headers["x-voice"], answer.headers["x-sample-rate"]) == ("af_heart", str(KOKORO_RATE))
    assert letters(pcm(answer), KOKORO_HOP, kokoro_ids()) == "həlˈOnˈW"
    timed = product.call("POST", "/tts/synthesize?timings=phonemes", {"text": "Hello now.", "voice": "am_onyx"}).json()
    assert [word["word"] for word in timed["words"]] == ["Hello", "now"]
    assert [phoneme["ipa"] for phoneme in timed["phonemes"]] == ["h", "ə", "l", "ˈoʊ", "n", "ˈaʊ"]
    openai = {"model": "kokoro", "voice": "onyx", "input": "Hi.", "response_format": "wav"}
    for model in ("kokoro", "acme/kokoro", "tiny-kokoro", "tts-1"):
        spoken = product.call("POST", "/v1/audio/speech", {**openai, "model": model})
        assert (spoken.headers["x-model"], spoken.headers["x-voice"]) == ("tiny-kokoro", "am_onyx")
    blended = product.call("POST", "/tts/synthesize", {"text": "Hi.", "voice": "af_heart+am_onyx"})
    assert blended.headers["x-voice"] == "af_heart+am_onyx"
    assert product.call("POST", "/tts/synthesize", {"text": "Hi.", "voice": "jf_alpha"}).status == 422
