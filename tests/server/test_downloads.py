"""Many downloads at once, what a user agrees to over HTTP, and weights that another process takes away."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Fault, Hub
from tests.product import ROOT, Product, alive, until, write_hub_fake

MANY = [f"many{number}" for number in range(8)]


def model(product: Product, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = product.call("GET", f"/models/{name}").json()
    return shown


@pytest.mark.e2e
def test_many_downloads_take_their_turn_and_nothing_waits_for_them(
    launch: Callable[..., Product], hub: Hub, tmp_path: Path
) -> None:
    for name in MANY:
        hub.add(f"tiny/{name}", {"weights.safetensors": b"\0" * 100_000})
        write_hub_fake(tmp_path / "catalogue", name)
    hub.choose = lambda _: Fault("stall", 50_000, 60.0)
    product = launch(SIDECAR_CATALOGUE=str(tmp_path / "catalogue"), HF_ENDPOINT=hub.url)
    for name in MANY:
        assert product.call("POST", f"/models/{name}/download").status == 202
    until(lambda: len(hub.sent) and sum(hub.sent.values()) >= 3 * 50_000, "three are under way", 20)
    # What the server does beside its loop must not stand behind them.
    assert product.call("GET", "/tts/voices", timeout_s=5.0).status == 200

    def shown() -> list[dict[str, Any]]:
        return [model(product, name) for name in MANY]

    until(lambda: sum(bool(one["progress"]["done"]) for one in shown()) == 3, "three show how far they are", 10)
    assert all(one["state"] == "downloading" for one in shown())
    progress = until(lambda: product.handshake["progress"], "the handshake shows it", 10)
    assert progress["done"] == 50_000 and progress["total"] == 100_000 and {"rate", "eta_s"} <= progress.keys()
    assert sum(hub.sent.values()) == 3 * 50_000, "the others wait for their turn"
    last = MANY[-1]
    product.call("POST", f"/models/{last}/cancel")
    until(lambda: model(product, last)["state"] == "absent", "one that has not begun is cancelled at once", 2.0)
    assert "cancelled" in model(product, last)["error"]
    for name in MANY[:3]:
        product.call("POST", f"/models/{name}/cancel")
    hub.choose = None
    for name in MANY[3:-1]:
        until(lambda name=name: model(product, name)["state"] in ("available", "ready"), "its turn has come", 30)


@pytest.fixture
def asking(launch: Callable[..., Product], hub: Hub, tmp_path: Path) -> Product:
    """A product that knows a model with a licence to agree to, and a pickle."""
    folder = write_hub_fake(tmp_path / "catalogue", "asking")
    entry = folder / "asking.toml"
    text = entry.read_text().replace('licence = "MIT"', 'licence = "own"\nopt_in = "research only"')
    entry.write_text(text.replace('"weights.safetensors" }', '"weights.bin", pickle = true }'))
    hub.add("tiny/asking", {"weights.bin": b"\0" * 1000})
    return launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url)


def test_what_the_user_has_to_agree_to_is_asked_before_a_download_begins(asking: Product, hub: Hub) -> None:
    refused = asking.call("POST", "/models/asking/download")
    assert refused.status == 403 and refused.json()["code"] == "licence_required", refused.body
    assert "research only" in refused.json()["detail"] and '{"accept_licence": true}' in refused.json()["detail"]
    refused = asking.call("POST", "/models/asking/download", {"accept_licence": True})
    assert refused.status == 403 and refused.json()["code"] == "pickle_refused", refused.body
    assert '{"allow_pickles": ["weights.bin"]}' in refused.json()["detail"]
    assert asking.call("POST", "/models/asking/download", {"allow_pickles": "all"}).status == 422
    assert asking.call("POST", "/models/asking/download", {"accept_license": True}).status == 422
    assert model(asking, "asking")["state"] == "absent" and hub.total_sent() == 0
    assert asking.call("POST", "/models/asking/download", {"allow_pickles": ["weights.bin"]}).status == 202
    until(lambda: model(asking, "asking")["state"] in ("available", "ready"), "the licence was agreed to before", 30)


@pytest.mark.e2e
def test_a_download_goes_on_when_the_server_is_back(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    for name in ("wanted", "cancelled"):
        hub.add(f"tiny/{name}", {"weights.safetensors": b"\0" * 400_000})
        write_hub_fake(folder, name)
    env = {"SIDECAR_CATALOGUE": str(folder), "HF_ENDPOINT": hub.url}
    hub.choose = lambda _: Fault("stall", 100_000, 60.0)

    def part(name: str) -> bool:
        parts = (tmp_path / "home" / "cache" / "models" / name).rglob("*.part")
        return any(path.stat().st_size == 100_000 for path in parts)

    with Product(tmp_path / "home", **env) as product:
        for name in ("wanted", "cancelled"):
            product.call("POST", f"/models/{name}/download")
        until(lambda: part("wanted") and part("cancelled"), "both are under way", 20)
        product.call("POST", "/models/cancelled/cancel")
        until(lambda: model(product, "cancelled")["state"] == "absent", "one is cancelled", 5)
        first = product.server()
        first.kill()
        until(lambda: not alive(first) and product.handshake["server"], "another server", 30)
        until(lambda: model(product, "wanted")["state"] == "downloading", "it goes on after a crash", 30)
        assert model(product, "cancelled")["state"] == "absent"
    hub.choose = None
    with Product(tmp_path / "home", **env) as product:
        until(lambda: model(product, "wanted")["state"] in ("available", "ready"), "it goes on after a stop", 30)
        assert model(product, "cancelled")["state"] == "absent" and not model(product, "cancelled")["error"]
    assert hub.sent["weights.safetensors"] < 100_000 + 400_000 + 150_000, "next to nothing came twice"
    with Product(tmp_path / "home", **env) as product:
        assert product.call("GET", "/models/wanted").json()["state"] != "downloading"


def test_weights_that_are_removed_beside_the_server_are_missed(
    launch: Callable[..., Product], hub: Hub, tmp_path: Path
) -> None:
    hub.add("tiny/better", {"weights.safetensors": b"\0" * 1000})
    folder = write_hub_fake(tmp_path / "catalogue", "better")
    product = launch(SIDECAR_CATALOGUE=str(folder), HF_ENDPOINT=hub.url)
    product.call("POST", "/models/better/download")
    until(lambda: product.emotion("x").json()["model"] == "better", "it answers", 30)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SIDECAR_", "HF_"))}
    kept |= {"SIDECAR_HOME": str(product.home), "SIDECAR_CATALOGUE": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "sidecar", "models", "rm", "better"], env=kept, check=True)
    until(lambda: product.emotion("x").json()["model"] == "minilm", "the next best answers", 30)
    assert model(product, "better")["state"] == "absent"
    assert product.call("GET", "/health").json()["status"] == "healthy"
