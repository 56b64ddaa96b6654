"""Parler-TTS as a user gets it: from the hub into the cache, loaded in the environment of torch, speaking."""

import http.client
import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.catalogue.catalogue import BUILT_IN
from tests.hub import Hub
from tests.product import Product, until
from tests.server.test_own_backchannel import add_torch
from tests.tiny_parler import HOP, RATE, files_of, write_parler
from tests.torch_profile import torch_python

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LONGEST = 200
MODEL = "tiny-parler"


@pytest.fixture
def product(launch: Callable[..., Product], hub: Hub, tmp_path: Path) -> Product:
    """A home with torch, whose catalogue has the built-in entry but for its name and repository."""
    python = torch_python()
    folder = tmp_path / "catalogue"
    folder.mkdir()
    entry = (BUILT_IN / "parler-tts-mini.toml").read_text(encoding="utf-8")
    entry = entry.replace("parler-tts/parler-tts-mini-v1", "acme/parler").replace("parler-tts-mini", MODEL)
    (folder / "parler.toml").write_text(entry, encoding="utf-8")
    launched = launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url, SIDECAR_DEVICE="cpu")
    add_torch(launched.home, python)
    return launched


def say(product: Product, text: str, **values: Any) -> Any:
    return product.call("POST", "/tts/synthesize", {"text": text, **values}, timeout_s=120)


def pcm(answer: Any) -> Any:
    assert answer.status == 200, answer.body
    with wave.open(io.BytesIO(answer.body)) as file:
        assert file.getframerate() == RATE
        return np.frombuffer(file.readframes(10**9), "<i2")


def fetch(product: Product) -> None:
    assert product.call("POST", f"/models/{MODEL}/download").status == 202
    until(lambda: not product.call("GET", f"/models/{MODEL}").json()["missing"], "download and environment to be seen")


def test_it_arrives_and_speaks_as_it_is_told(product: Product, hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/parler", files_of(write_parler(tmp_path / "made", LONGEST)))
    asked = product.call("POST", "/tts/synthesize", {"text": "Hi.", "model": MODEL})
    assert asked.status == 503, "not here yet, and an error says so"
    fetch(product)
    loaded = product.call("POST", f"/models/{MODEL}/load", timeout_s=120)
    assert loaded.status == 200, (loaded.body, product.log()[-2000:])
    answer = say(product, "Hello there.", model=MODEL)
    plain = pcm(answer)
    assert len(plain) == (LONGEST - 9) * HOP and np.abs(plain.astype(int)).max() > 3000
    assert (answer.headers["x-model"], answer.headers["x-voice"]) == (MODEL, "described")
    assert np.array_equal(plain, pcm(say(product, "Hello there.", model=MODEL))), "the same seed, the same sound"
    voices = {each["id"]: each for each in product.call("GET", "/tts/voices").json()["voices"]}
    assert "Jon" in voices["described"]["description"] and voices["Laura"]["gender"] == "female"
    assert voices["Laura"]["model"] == MODEL and "description" not in voices["en-us"]
    heard = {plain.tobytes()}
    for told in ({"voice": "Laura"}, {"emotion": "joy"}, {"description": "A giant roars."}, {"seed": 7}):
        heard.add(pcm(say(product, "Hello there.", model=MODEL, **told)).tobytes())
    assert len(heard) == 5, "each is another rendering"
    assert say(product, "Hello there.", voice="Laura").headers["x-model"] == MODEL, "who has the voice speaks"
    refused = product.call("POST", "/tts/synthesize?timings=phonemes", {"text": "Hi.", "model": MODEL})
    assert refused.status == 422 and "does not tell its timings" in refused.json()["detail"]


def test_openais_instructions_are_its_description(product: Product, hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/parler", files_of(write_parler(tmp_path / "made", LONGEST)))
    fetch(product)
    body = {"model": MODEL, "voice": "described", "input": "Hello there.", "response_format": "wav"}

    def spoken(**values: Any) -> Any:
        return product.call("POST", "/v1/audio/speech", {**body, **values}, timeout_s=120)

    told = pcm(spoken(instructions="A giant roars."))
    assert np.array_equal(told, pcm(say(product, "Hello there.", model=MODEL, description="A giant roars.")))
    assert not np.array_equal(told, pcm(spoken()))
    assert spoken(voice="alloy").headers["x-voice"] == "Lea", "the first of the women"
    voices = {each["id"]: each for each in product.call("GET", "/tts/voices").json()["voices"]}
    assert voices[spoken(voice="onyx").headers["x-voice"]]["gender"] == "male"
    fast = pcm(spoken(speed=2.0, instructions="A giant roars."))
    assert len(fast) == pytest.approx(len(told) / 2, abs=10)


def test_a_listener_who_goes_ends_a_sentence_in_its_middle(product: Product, hub: Hub, tmp_path: Path) -> None:
    """At another speed the whole sentence of 2580 columns would be made before a byte is sent."""
    hub.add("acme/parler", files_of(write_parler(tmp_path / "made", 2580)))
    fetch(product)
    assert product.call("POST", f"/models/{MODEL}/load", timeout_s=120).status == 200
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=60)
    headers = {"Authorization": f"Bearer {product.token}", "Content-Type": "application/json"}
    connection.request("POST", "/tts/synthesize", json.dumps({"text": "Hi.", "model": MODEL, "speed": 0.5}), headers)
    under_way = f'sidecar_streams_open{{model="{MODEL}"}} 1'
    until(lambda: under_way in product.call("GET", "/metrics").body.decode(), "the sentence to be begun")
    connection.close()
    refused = say(product, "Hi.", model=MODEL, voice="described", description="x" * 1500)
    assert refused.status == 422 and "at most 512 are read" in refused.json()["detail"]
    with_first = http.client.HTTPConnection("127.0.0.1", product.port, timeout=120)
    with_first.request("POST", "/tts/synthesize", json.dumps({"text": "Hi.", "model": MODEL}), headers)
    response = with_first.getresponse()
    assert response.status == 200 and len(response.read(2000)) == 2000, "the first part comes before the last is made"
    with_first.close()
