"""OpenAI's JavaScript client from npm, unchanged."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.product import ROOT, Product
from tests.prompts import plain, prompts

HERE = ROOT / "tests" / "e2e" / "node"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts with their packages, as the lock says."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install nodejs npm")
    made = tmp_path_factory.mktemp("node")
    for path in HERE.iterdir():
        if path.is_file():
            shutil.copy(path, made)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        pytest.skip(f"npm could not install the packages of {HERE}: {done.stderr[-500:]}")
    return made


def run(product: Product, folder: Path, script: str, *arguments: str) -> Any:
    command = ["node", script, f"http://127.0.0.1:{product.port}/v1", *arguments]
    environment = {**os.environ, "OPENAI_API_KEY": product.token}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.e2e
def test_transcription_in_every_format_streaming_and_errors(product: Product, folder: Path) -> None:
    found = run(product, folder, "transcription.mjs", str(prompts(100)[2].path))
    text = found["formats"]["json"]["text"]
    assert "followed by the pound key" in plain(text) and found["translation"]["text"] == text
    assert found["formats"]["text"].strip() == text and found["formats"]["verbose_json"]["language"] == "english"
    assert "00:00:0" in found["formats"]["srt"] and found["formats"]["vtt"].startswith("WEBVTT")
    assert [event["type"] for event in found["events"]] == ["transcript.text.delta", "transcript.text.done"]
    assert found["errors"]["model"] == {
        "type": "NotFoundError",
        "api": True,
        "code": "model_not_found",
        "param": "model",
    }
    assert (
        found["errors"]["language"]["type"] == "BadRequestError" and found["errors"]["language"]["param"] == "language"
    )
    assert found["errors"]["key"]["type"] == "AuthenticationError"


@pytest.mark.e2e
def test_speech_in_every_format_streaming_and_errors(product: Product, folder: Path) -> None:
    found = run(product, folder, "speech.mjs")
    types = {format: answer["type"] for format, answer in found["formats"].items()}
    assert types == {
        **{"mp3": "audio/mpeg", "opus": "audio/ogg; codecs=opus", "aac": "audio/aac"},
        **{"flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm"},
    }
    for format, answer in found["formats"].items():
        body = {"audio": answer["audio"], **({"sample_rate": 24_000} if format == "pcm" else {})}
        heard = product.call("POST", "/vad/detect", body).json()
        assert 3.5 < heard["duration_s"] < 6.5 and heard["speech_ratio"] > 0.5, (format, heard)
    assert found["blocks"]["count"] > 50 and found["blocks"]["first_ms"] < found["blocks"]["last_ms"] / 4
    assert found["events"][-1] == "speech.audio.done" and set(found["events"][:-1]) == {"speech.audio.delta"}
    assert {name: error["type"] for name, error in found["errors"].items()} == {
        **{"voice": "BadRequestError", "model": "NotFoundError", "speed": "BadRequestError"},
        **{"format": "BadRequestError", "blank": "BadRequestError"},
    }
    assert all(error["api"] for error in found["errors"].values())
    params = {name: error["param"] for name, error in found["errors"].items()}
    assert params == {"voice": "voice", "model": "model", "speed": "speed", "format": "response_format", "blank": None}
