"""Profiles that come and go while the product runs: real environments, made by the real launcher."""

import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from sidecar.settings import ROOT
from tests.launcher.conftest import find_uv, gate, write_profile
from tests.load import Load
from tests.product import Product, alive, until, write_fake

OTHER = "minilm-oldnumpy"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A folder with base, and the profile whose numpy is not base's."""
    folder = tmp_path / "profiles"
    shutil.copytree(ROOT / "tests" / "fixtures" / "profiles", folder)
    for path in (ROOT / "installer" / "profiles").glob("b*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A folder with the embedded model once more, preferred, and to be run in that profile."""
    text = (ROOT / "models" / "catalogue" / "minilm.toml").read_text(encoding="utf-8")
    for old, new in (
        ('id = "minilm"', f'id = "{OTHER}"'),
        ('profile = "base"', 'profile = "oldnumpy"'),
        ("preference = 10", "preference = 1000"),
        ('folder = "../embedded"', f'folder = "{ROOT / "models" / "embedded"}"'),
    ):
        assert old in text
        text = text.replace(old, new)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "other.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def start(launch: Callable[..., Product], profiles: Path, catalogue: Path) -> Callable[..., Product]:
    """Start a product that knows them, with uv on its PATH if there is one."""

    def begin(**env: str) -> Product:
        uv = find_uv()
        path = f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}" if uv else os.environ["PATH"]
        return launch(PATH=path, SIDECAR_PROFILES=str(profiles), SIDECAR_CATALOGUE=str(catalogue), **env)

    return begin


def profile(product: Product, name: str) -> Any:
    rows = product.call("GET", "/profiles").json()["profiles"]
    return next(row for row in rows if row["name"] == name)


def launcher(product: Product, profiles: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A person's launcher in a terminal beside the product."""
    env = {**os.environ, "SIDECAR_HOME": str(product.home), "SIDECAR_PROFILES": str(profiles)}
    command = [sys.executable, str(ROOT / "launcher.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def profile_events(stream: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Data of the `profile` events, up to one that tells of an end."""
    name = ""
    for line in map(lambda raw: raw.decode().rstrip("\n"), iter(stream.readline, b"")):
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: ") and name == "profile":
            data = json.loads(line[6:])
            yield data
            if data["state"] != "installing":
                return


def roots(product: Product, name: str) -> list[Path]:
    return [path for path in (product.home / "env").glob(f"{name}-*") if path.is_dir() and path.suffix != ".cache"]


@pytest.mark.slow
def test_an_environment_with_another_numpy_comes_and_goes_under_load(
    start: Callable[..., Product], profiles: Path
) -> None:
    product = start()
    server = product.server()
    with Load(product) as load:
        until(lambda: load.answered_by("minilm"), "the embedded model answers")
        missing = product.call("GET", f"/models/{OTHER}").json()["missing"]
        assert [each["cure"] for each in missing] == ["python3 launcher.py install --with oldnumpy"]
        started = time.monotonic()
        for _ in range(3):
            accepted = product.call("POST", "/profiles/oldnumpy/install")
            assert accepted.status == 202 and accepted.json()["state"] == "installing"
        assert sum("launcher.py" in " ".join(child.cmdline()) for child in server.children()) == 1, "one, whoever asks"
        until(lambda: load.answered_by(OTHER), "the other model takes over", 180)
        live_after_s = time.monotonic() - started
        shown = profile(product, "oldnumpy")
        assert (shown["state"], shown["progress"], shown["error"]) == ("installed", None, None)
        assert shown["models"] == [OTHER]
        pinned = {
            model: product.call("POST", "/emotion/detect", {"text": "She finally said yes!", "model": model}).json()
            for model in ("minilm", OTHER)
        }
        assert {answer["model"]: answer["emotion"] for answer in pinned.values()} == {"minilm": "joy", OTHER: "joy"}
        [root] = roots(product, "oldnumpy")
        python = str(root / "bin" / "python")
        runner = psutil.Process(product.call("GET", f"/models/{OTHER}").json()["pid"])
        assert runner.cmdline()[0] == python
        ask = subprocess.run([python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True, text=True)
        assert ask.stdout.strip() in ("1.26.4", "2.1.3") and numpy.__version__ != ask.stdout.strip()
        items = {(event["progress"] or {}).get("item") for event in product.events}
        assert "oldnumpy" in items
        until(lambda: product.handshake["progress"] is None, "no progress is left")

        # And away again, by a launcher in a terminal, which tells the running instance.
        removed = launcher(product, profiles, "remove", "oldnumpy", "--json")
        assert removed.returncode == 0, removed.stderr
        freed_bytes = json.loads(removed.stdout)["freed_bytes"]
        until(lambda: load.answered_by("minilm"), "the embedded model answers again")
    answers = load.answers
    assert freed_bytes > 100_000_000 and not roots(product, "oldnumpy")
    assert not alive(runner)
    failed = [answer for answer in answers if answer[0] != 200]
    print(f"live after {live_after_s:.1f} s, {len(failed)} of {len(answers)} requests failed, {freed_bytes} freed")
    assert failed == []
    models = [model for _, model, _ in answers]
    assert {"minilm", OTHER} == set(models)
    assert product.server().pid == server.pid and product.handshake["restarts"]["count"] == 0
    refused = product.call("POST", "/emotion/detect", {"text": "hello", "model": OTHER})
    assert refused.status == 503 and "python3 launcher.py install --with oldnumpy" in refused.json()["detail"]


@pytest.fixture
def gated(tmp_path: Path, profiles: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A profile from a wheel of our own, whose import says that it has begun and waits: files `reached` and `go`."""
    source, reached, go = gate(tmp_path)
    write_profile(profiles, tmp_path / "wheels", "gated", tiny=source)
    # No index: everything is in this folder.
    for name, value in (("FIND_LINKS", str(tmp_path / "wheels")), ("NO_INDEX", "1")):
        monkeypatch.setenv(f"UV_{name}", value)
        monkeypatch.setenv(f"PIP_{name}", value)
    yield reached, go
    go.touch()


@linux_only
def test_a_server_killed_in_the_middle_leaves_nothing_half_used(
    start: Callable[..., Product], gated: tuple[Path, Path]
) -> None:
    reached, go = gated
    product = start()
    assert product.call("POST", "/profiles/gated/install").status == 202
    until(reached.exists, "the new environment is being tried")
    step = psutil.Process(int(reached.read_text()))
    [child] = [child for child in product.server().children() if "launcher.py" in " ".join(child.cmdline())]
    old = product.server()
    old.kill()
    until(lambda: not alive(step) and not alive(child), "launcher and step end with the server", 15.0)
    until(lambda: product.handshake["server"] and product.handshake["server"]["pid"] != old.pid, "a new server")
    product.wait("ready", "degraded")
    assert profile(product, "gated")["state"] == "absent"
    [root] = roots(product, "gated")
    assert not (root / "complete.json").exists()
    go.touch()
    assert product.call("POST", "/profiles/gated/install").status == 202
    until(lambda: profile(product, "gated")["state"] == "installed", "the second try repairs it")
    assert roots(product, "gated") == [root]


@linux_only
@pytest.mark.parametrize("end", ["supervisor is killed", "host closes stdin"])
def test_an_installation_ends_with_everything_else(
    start: Callable[..., Product], gated: tuple[Path, Path], end: str
) -> None:
    reached, _ = gated
    product = start()
    product.call("POST", "/profiles/gated/install")
    until(reached.exists, "the new environment is being tried")
    left = [*product.tree(), psutil.Process(int(reached.read_text()))]
    if end == "supervisor is killed":
        product.process.kill()
    else:
        assert product.process.stdin is not None
        product.process.stdin.close()
    until(lambda: not any(map(alive, left)), "nothing is left", 15.0)


@linux_only
def test_cancel_ends_the_installation_and_delete_gives_the_disk_back(
    start: Callable[..., Product], gated: tuple[Path, Path]
) -> None:
    reached, go = gated
    product = start()
    listening = http.client.HTTPConnection("127.0.0.1", product.port, timeout=20)
    listening.request("GET", "/events", headers={"Authorization": f"Bearer {product.token}"})
    events = listening.getresponse()
    product.call("POST", "/profiles/gated/install")
    until(reached.exists, "the new environment is being tried")
    step = psutil.Process(int(reached.read_text()))
    refused = product.call("DELETE", "/profiles/gated")
    assert refused.status == 409 and refused.json()["code"] == "profile_busy" and refused.json()["retryable"]
    assert "being installed" in refused.json()["detail"] and "/profiles/gated/cancel" in refused.json()["detail"]
    assert alive(step), "it goes on"
    cancelled = product.call("POST", "/profiles/gated/cancel").json()
    assert cancelled["state"] == "absent" and cancelled["progress"] is None and cancelled["error"] is None
    until(lambda: not alive(step), "the step ends", 15.0)
    told = [data for data in profile_events(events) if data["profile"] == "gated"]
    assert told[0]["state"] == "installing" and told[-1]["state"] == "absent"
    assert {"item": "tiny", "done": 1, "total": 1, "unit": "packages"}.items() <= told[-2].items()
    listening.close()
    assert roots(product, "gated")
    deleted = product.call("DELETE", "/profiles/gated").json()
    assert deleted["state"] == "absent" and deleted["freed_bytes"] > 0 and not roots(product, "gated")
    go.touch()
    product.call("POST", "/profiles/gated/install")
    until(lambda: profile(product, "gated")["state"] == "installed", "installed")
    assert product.call("POST", "/profiles/gated/install").json()["state"] == "installed"
    assert product.call("DELETE", "/profiles/gated").json()["freed_bytes"] > 0


@linux_only
def test_one_that_is_being_removed_is_installed_afterwards(
    launch: Callable[..., Product], profiles: Path, tmp_path: Path
) -> None:
    own = write_fake(tmp_path / "own", more='profile = "oldnumpy"', max_items=1, timeout_s=60.0)
    product = launch(SIDECAR_PROFILES=str(profiles), SIDECAR_CATALOGUE=str(own))
    root = product.home / "env" / "oldnumpy-000000000000"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    [packages] = root.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    digest = hashlib.sha256((profiles / "oldnumpy.lock").read_bytes()).hexdigest()
    (root / "complete.json").write_text(json.dumps({"lock_sha256": digest, "finished_at": 1.0}))
    until(lambda: product.call("GET", "/models/fake").json()["state"] == "ready", "it runs in its profile")
    with ThreadPoolExecutor(4) as beside:
        slow = [beside.submit(product.emotion, f"!until:{tmp_path}/go", timeout_s=60) for _ in range(3)]
        until(lambda: product.call("GET", "/models/fake").json()["queue_size"] == 1, "two are under way, one waits")
        removing = beside.submit(product.call, "DELETE", "/profiles/oldnumpy", timeout_s=60)
        until(lambda: profile(product, "oldnumpy")["state"] == "absent", "it is leaving")
        for method, path in (("POST", "/profiles/oldnumpy/install"), ("DELETE", "/profiles/oldnumpy")):
            refused = product.call(method, path)
            assert refused.status == 409 and refused.json()["code"] == "profile_busy", refused.body
            assert "is being removed" in refused.json()["detail"]
        assert not removing.done()
        (tmp_path / "go").touch()
        assert [each.result().status for each in slow] == [200] * 3 and removing.result().status == 200
    assert not root.exists()


def test_a_failed_installation_says_why(start: Callable[..., Product], gated: object, profiles: Path) -> None:
    lock = profiles / "gated.lock"
    lock.write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{'1' * 64}", lock.read_text(), count=1))
    product = start()
    product.call("POST", "/profiles/gated/install")
    until(lambda: profile(product, "gated")["state"] == "failed", "it fails")
    assert "SHA-256 differs" in profile(product, "gated")["error"]
    assert product.emotion("I am so happy today!").json()["emotion"] == "joy"


@linux_only
def test_a_runner_in_a_broken_environment_names_the_cure(
    start: Callable[..., Product], profiles: Path, tmp_path: Path
) -> None:
    product = start()
    root = product.home / "env" / "oldnumpy-000000000000"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    load = f"/models/{OTHER}/load"
    half_made = product.call("POST", load)
    assert half_made.status == 503 and "not finished" in half_made.json()["detail"]
    assert "python3 launcher.py install --with oldnumpy" in half_made.json()["detail"]
    digest = hashlib.sha256((profiles / "oldnumpy.lock").read_bytes()).hexdigest()
    (root / "complete.json").write_text(json.dumps({"lock_sha256": digest, "finished_at": 1.0}))
    until(lambda: product.call("GET", f"/models/{OTHER}").json()["missing"] == [], "noticed beside us")
    broken = product.call("POST", load)
    assert broken.status == 503 and broken.json()["code"] == "environment_broken"
    cure = "python3 launcher.py remove oldnumpy, then python3 launcher.py install --with oldnumpy"
    assert cure in broken.json()["detail"]
    shutil.rmtree(root)
    until(lambda: product.call("GET", f"/models/{OTHER}").json()["missing"], "noticed that it is gone")
    gone = product.call("POST", load)
    assert gone.status == 503 and "install --with oldnumpy" in gone.json()["detail"]
    assert product.emotion("I am so happy today!").json()["model"] == "minilm"


def test_the_profiles_are_shown_with_what_they_cost(product: Product) -> None:
    rows = {row["name"]: row for row in product.call("GET", "/profiles").json()["profiles"]}
    assert rows["base"]["state"] == "installed" and "minilm" in rows["base"]["models"]
    assert rows["torch"]["state"] == "absent" and rows["torch"]["size_mb"] > rows["torch"]["cpu_size_mb"] > 500
    assert rows["bfa"]["licence"] == "GPL-3.0" and rows["cuda"]["needs_device"] == "cuda"
    assert "dev" not in rows


def test_what_is_refused(product: Product) -> None:
    licence = product.call("POST", "/profiles/bfa/install")
    assert licence.status == 403 and licence.json()["code"] == "licence_required"
    assert "General Public License" in licence.json()["detail"] and "accept_licence" in licence.json()["detail"]
    assert product.call("POST", "/profiles/bfa/install", {"accept_licence": False}).status == 403
    assert product.call("POST", "/profiles/bfa/install", {"accept_licence": "perhaps"}).status == 422
    assert product.call("POST", "/profiles/nothing/install").json()["code"] == "profile_not_found"
    base = product.call("DELETE", "/profiles/base")
    assert base.status == 409 and base.json()["code"] == "profile_needed"
    assert product.call("POST", "/profiles/torch/cancel").json()["state"] == "absent"
