"""A hub, a home, and models that exist for one test."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.spec import ModelSpec
from tests.hub import Hub

ROOT = Path(__file__).resolve().parent.parent.parent

TOML = """
id = "{id}"
title = "a model of one test"
capabilities = ["emotion"]
runtime = "{runtime}"
licence = "MIT"
preference = 100
{more}

[source]
repo = "{repo}"
{source}
"""


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, and the same ones for the same seed."""
    return random.Random(seed).randbytes(size)


def make_spec(repo: str, *paths: str, **values: Any) -> ModelSpec:
    """An entry for files of a repository; `revision`, `include`, `files` and all other fields by name."""
    source = {"repo": repo, **{key: values.pop(key) for key in ("revision", "include") if key in values}}
    defaults = {"id": "tiny", "title": "t", "capabilities": ["emotion"], "runtime": "onnx", "licence": "MIT"}
    files = [{"path": path} for path in paths]
    return ModelSpec.model_validate({**defaults, "source": source, "files": files, **values})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one; it waits 3 s for silent servers."""
    from huggingface_hub import close_session, constants

    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 3)
        monkeypatch.setattr("sidecar.catalogue.retry._FIRST_S", 0.01)
        yield running
        close_session()


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "home" / "cache" / "models", Lockfile(tmp_path / "home" / "models.lock.json"))


class Terminal:
    """`python -m sidecar models …` in a home of its own."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home = home
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SIDECAR_", "HF_")) and not key.lower().endswith("_proxy")
        }
        self.environment |= {
            "SIDECAR_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "HF_HOME": str(home / "hf"),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sidecar", "models", *words]

    def run(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        env = self.environment | environment
        return subprocess.run(self.command(*words), env=env, capture_output=True, text=True, timeout=60)

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        env = self.environment | environment
        return subprocess.Popen(
            self.command(*words), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def add(self, repo: str, id: str = "tiny", runtime: str = "onnx", source: str = "", more: str = "") -> None:
        """Write an entry into the user's own catalogue."""
        folder = self.home / "catalogue"
        folder.mkdir(parents=True, exist_ok=True)
        text = TOML.format(id=id, repo=repo, runtime=runtime, source=source, more=more)
        (folder / f"{id}.toml").write_text(text, encoding="utf-8")


@pytest.fixture
def terminal(tmp_path: Path, hub: Hub) -> Terminal:
    return Terminal(tmp_path / "home", hub)


@pytest.fixture
def publish(hub: Hub) -> Callable[..., str]:
    """Publish a small model as `acme/tiny`; returns its commit."""

    def add(**files: bytes) -> str:
        named = {name.replace("__", "/").replace("_", "."): content for name, content in files.items()}
        content = named or {"model.onnx": random_bytes(300_000), "config.json": b'{"a": 1}', "vocab/a.txt": b"x" * 5000}
        return hub.add("acme/tiny", dict(content))

    return add
