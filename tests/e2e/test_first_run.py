"""A new user's walk: a fresh home, the README's commands, the launcher as a host starts it."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.product import ROOT, alive, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Not the environment that runs the tests, but the Python it was made from, as a user has it.
PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")


class Home:
    """A home in which nothing is installed at first; its path has a space and a letter beyond ASCII."""

    first: "subprocess.CompletedProcess[str]"
    """The first command in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("SIDECAR_", "PYTHON"))}
        self.env |= {"SIDECAR_HOME": str(path), "HOME": str(path / "user home")}

    def run(self, *arguments: str, timeout_s: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, str(ROOT / "launcher.py"), *arguments],
            env=self.env | env,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def ask(self, handshake: dict[str, object], path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        request = urllib.request.Request(
            f"{handshake['base_url']}{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"Bearer {handshake['token']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, object] = json.load(response)
            return answer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("first run") / "Häuschen am See"
    path.mkdir()
    fresh = Home(path)
    fresh.first = fresh.run("try", "I am so happy today!")
    yield fresh
    fresh.run("stop")


def test_first_command_prints_joy(home: Home) -> None:
    done = home.first
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "joy"
    assert "installing" in done.stderr
    assert home.run("status").returncode == 3, "the instance of a try ends with it"


def test_second_time_nothing_is_installed(home: Home) -> None:
    done = home.run("try", "My hands won't stop shaking, I can't go in there.")
    assert done.stdout.split()[0] == "fear" and "installing" not in done.stderr


def test_the_users_python_variables_do_not_leak_in(home: Home, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('leaked')")
    done = home.run(
        "try", "I am so happy today!", PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path), LD_LIBRARY_PATH=str(tmp_path)
    )
    # PYTHONHOME breaks the very Python that runs the launcher: that one is the user's to mend.
    if done.returncode and "encodings" in done.stderr:
        done = home.run("try", "I am so happy today!", PYTHONPATH=str(tmp_path / "none"), LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0 and done.stdout.split()[0] == "joy", done.stderr


def test_detach_status_logs_stop(home: Home) -> None:
    assert home.run("--detach").returncode == 0
    handshake = json.loads(home.run("status", "--json").stdout)
    supervisor = psutil.Process(handshake["supervisor"]["pid"])
    assert handshake["phase"] == "ready"
    assert home.ask(handshake, "/health")["instance_id"] == handshake["instance_id"]
    assert home.ask(handshake, "/emotion/detect", {"text": "She finally said yes!"})["emotion"] == "joy"
    second = home.run("run", timeout_s=60)
    assert json.loads(second.stdout)["instance_id"] == handshake["instance_id"]
    assert "joy" in home.run("try", "I am so happy today!").stdout
    assert json.loads(home.run("status", "--json").stdout)["instance_id"] == handshake["instance_id"]
    assert "POST /emotion/detect 200" in home.run("logs", "-n", "50").stdout
    assert home.run("stop").returncode == 0
    assert home.run("status").returncode == 3
    assert not alive(supervisor)


def test_a_host_that_holds_the_pipe(home: Home) -> None:
    host = subprocess.Popen(
        [PYTHON, str(ROOT / "launcher.py"), "--events"],
        env=home.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdin is not None and host.stdout is not None
    events = []
    for line in host.stdout:
        events.append(json.loads(line))
        if events[-1]["phase"] == "ready":
            break
    assert events[-1]["phase"] == "ready"
    assert events[-1]["supervisor"]["pid"] == host.pid, "the launcher becomes the supervisor"
    tree = [psutil.Process(host.pid), *psutil.Process(host.pid).children(recursive=True)]
    host.stdin.close()
    assert host.wait(15) == 0
    until(lambda: not any(map(alive, tree)), "all gone", 15.0)
    host.stdout.close()
