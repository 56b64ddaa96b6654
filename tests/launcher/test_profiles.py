"""Profiles at the command line: what there is, which build is taken, and what comes back when one is removed."""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest

from .conftest import ROOT, Place, gate, is_running, lock_text, make_wheel, wait_for

PROFILES = ROOT / "installer" / "profiles"


def error_of(result: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    assert result.returncode != 0 and "Traceback" not in result.stderr
    error: dict[str, str] = json.loads(result.stdout.splitlines()[-1])["error"]
    return error


def states(place: Place) -> dict[str, str]:
    rows = json.loads(place.launch("profiles", "--json").stdout)
    return {row["name"]: row["state"] for row in rows}


def make_finished(place: Place, *profiles: str) -> list[Path]:
    for name in profiles:
        result = place.install("--profile", name)
        assert result.returncode == 0, result.stderr
    return place.finished()


def test_what_there_is_and_what_is_here(place: Place) -> None:
    place.profile("extra", more='licence = "MIT"\n', tiny="VALUE = 1\n")
    place.profile("inner", more="internal = true\n", tiny="VALUE = 1\n")
    assert states(place) == {"base": "absent", "extra": "absent"}
    make_finished(place, "extra")
    assert states(place) == {"base": "absent", "extra": "installed"}
    shown = place.launch("profiles").stdout
    assert "extra   installed" in shown and "licence: MIT" in shown
    place.profile("extra", tiny="VALUE = 2\n")
    assert states(place)["extra"] == "outdated"
    [root] = place.finished()
    (root / "complete.json").unlink()
    assert states(place)["extra"] == "unfinished"


def test_remove_gives_the_disk_back(place: Place) -> None:
    del place.env["UV_CACHE_DIR"]  # one of the user's own would keep the files
    place.profile("extra", tiny="VALUE = 1\n", big="# " + os.urandom(2_000_000).hex() + "\n")
    make_finished(place, "base", "extra")
    place.profile("extra", tiny="VALUE = 2\n")
    make_finished(place, "extra")
    assert [root.name.split("-")[0] for root in place.environments()] == ["base", "extra", "extra"]
    assert not list((place.home / "env").glob("*.cache"))
    result = place.launch("remove", "extra", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["freed_bytes"] > 4_000_000
    assert [root.name.split("-")[0] for root in place.environments()] == ["base"]
    again = place.launch("remove", "extra")
    assert again.returncode == 0 and again.stdout == "extra  0 MB freed\n"


def test_remove_takes_what_an_interrupted_installation_left(place: Place) -> None:
    place.profile("extra", tiny="VALUE = 1\n")
    [root] = make_finished(place, "extra")
    (root / "complete.json").unlink()
    (root.parent / f"{root.name}.cache").mkdir()
    (root.parent / f"{root.name}.log").touch()
    assert place.launch("remove", "extra").returncode == 0
    assert [path.name for path in root.parent.iterdir()] == [f"{root.name}.lock"]


def test_base_stays_but_what_it_was_before_an_update_goes(place: Place) -> None:
    make_finished(place, "base")
    error = error_of(place.launch("remove", "base", "--events"))
    assert error["code"] == "profile_needed" and str(place.home) in error["message"]
    place.profile("base", tiny="VALUE = 2\n")
    old, new = sorted(make_finished(place, "base"), key=lambda root: root.stat().st_mtime)
    assert place.launch("remove", "base").returncode == 0
    assert place.environments() == [new] and not old.exists()


def test_remove_knows_its_names(place: Place) -> None:
    result = place.launch("remove", "nothing")
    assert result.returncode == 78 and "no profile 'nothing'; there are: base" in result.stderr
    assert "remove needs a NAME" in place.launch("remove").stderr


def test_remove_waits_for_nobody(place: Place, tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    source, reached, _ = gate(tmp_path)
    place.profile("extra", tiny=source)
    processes.append(place.start("install", "--profile", "extra", "--wheels", str(place.wheels)))
    wait_for(reached.exists)
    assert error_of(place.launch("remove", "extra", "--events"))["code"] == "profile_busy"
    assert place.environments()


def test_remove_goes_through_the_running_instance(place: Place) -> None:
    place.profile("extra", tiny="VALUE = 1\n")
    make_finished(place, "base", "extra")
    assert place.launch("--detach", FAKE_SIDECAR="serve").returncode == 0
    pid = json.loads((place.home / "run" / "sidecar.json").read_text())["supervisor"]["pid"]
    try:
        assert place.launch("remove", "extra").stdout == "extra  5 MB freed\n"
        assert len(place.environments()) == 2, "deleting is left to the instance"
        assert "stop it first" in place.launch("remove", "base").stderr
        assert place.launch("remove", "extra", "--unloaded").returncode == 0
        assert len(place.environments()) == 1
    finally:
        os.kill(pid, 9)


def test_remove_does_not_take_away_what_a_silent_instance_may_use(place: Place) -> None:
    import fcntl

    place.profile("extra", tiny="VALUE = 1\n")
    make_finished(place, "extra")
    (place.home / "run").mkdir()
    with open(place.home / "run" / "sidecar.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert error_of(place.launch("remove", "extra", "--events"))["code"] == "instance_busy"
        assert place.environments()
        assert place.launch("remove", "extra", "--unloaded").returncode == 0


# --- One profile, two builds


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a server of files from `tmp_path`."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def write_variants(place: Place, address: str) -> None:
    """A profile `extra`, too large in its normal build; the one for the CPU is a wheel at an address of its own."""
    place.profile("extra", size_mb=10**9, more="cpu_size_mb = 1\n", tiny="VALUE = 'cuda'\n")
    wheel = make_wheel(place.folder / "cpu", "tiny", {"tiny.py": "VALUE = 'cpu'\n"}, "1.0+cpu")
    url = f"{address}/{quote(place.folder.name)}/cpu/{quote(wheel.name)}"
    lock = lock_text([wheel]).replace("tiny==1.0+cpu", f"tiny @ {url} ; python_version >= '3.10'")
    assert url in lock
    (place.profiles / "extra-cpu.lock").write_text(lock, encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the normal build is the one for the CPU")
@pytest.mark.parametrize("tool", ["place", "pip_place"])
@pytest.mark.parametrize("offline", [False, True])
def test_the_build_fits_the_device(tool: str, offline: bool, served: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(tool)
    write_variants(place, served if not offline else "http://127.0.0.1:9")
    too_large = place.launch("install", "--profile", "extra", "--events", SIDECAR_DEVICE="cuda")
    assert error_of(too_large)["code"] == "disk_full"
    wheels = ("--wheels", str(place.folder / "cpu")) if offline else ()
    result = place.launch("install", "--profile", "extra", *wheels, SIDECAR_DEVICE="cpu")
    assert result.returncode == 0, result.stderr
    assert "builds for the CPU (SIDECAR_DEVICE=cuda" in result.stderr
    [root] = place.finished()
    assert root.name.startswith("extra-")
    ask = [str(root / "bin" / "python"), "-I", "-c", "import tiny; print(tiny.VALUE)"]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "cpu\n"
    assert states(place)["extra"] == "installed"
    place.env["SIDECAR_DEVICE"] = "cuda"
    assert states(place)["extra"] == "installed", "either build will do"


def test_an_index_of_its_own_that_cannot_be_reached_names_the_way_around(pip_place: Place) -> None:
    write_variants(pip_place, "http://127.0.0.1:9")
    result = pip_place.launch("install", "--profile", "extra", "--events", SIDECAR_DEVICE="cpu", PIP_RETRIES="0")
    error = error_of(result)
    assert error["code"] == "no_network" and "SIDECAR_DEVICE=cuda" in error["message"]


@pytest.mark.parametrize(
    ("device", "files", "cuda"),
    [
        ("auto", [], False),
        ("auto", ["nvidiactl", "nvidia-uvm"], False),
        ("auto", ["nvidiactl", "nvidia3"], True),
        ("cpu", ["nvidia0"], False),
        ("cuda", [], True),
        ("mps", [], False),
    ],
)
def test_a_gpu_is_one_that_this_system_may_use(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, files: list[str], cuda: bool
) -> None:
    monkeypatch.setenv("SIDECAR_DEVICE", device)
    monkeypatch.setattr(launcher.os, "listdir", lambda folder: files)
    monkeypatch.setattr(launcher.os.path, "exists", lambda path: False)
    assert launcher.wants_cuda() is cuda


@pytest.mark.parametrize("driver", [True, False])
def test_a_gpu_on_windows_is_its_driver(launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, driver: bool) -> None:
    def no_dev(folder: str) -> list[str]:
        raise FileNotFoundError(folder)

    monkeypatch.delenv("SIDECAR_DEVICE", raising=False)
    monkeypatch.setattr(launcher, "WINDOWS", True)
    monkeypatch.setattr(launcher.os, "listdir", no_dev)
    monkeypatch.setattr(launcher.os.path, "exists", lambda path: driver and path.endswith("nvcuda.dll"))
    assert launcher.wants_cuda() is driver


def test_what_people_should_know_is_said_before(place: Place) -> None:
    place.profile("extra", more='notice = "This is GPL."\nneeds_device = "cuda"\n', tiny="VALUE = 1\n")
    result = place.install("--profile", "extra", SIDECAR_DEVICE="cpu")
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if "installing" in line)
    told = "\n".join(lines[:first])
    assert "This is GPL." in told and "will run on the CPU" in told
    shutil.rmtree(place.environments()[0])
    events = place.install("--profile", "extra", "--events", SIDECAR_DEVICE="cpu")
    notices = [event["notice"] for event in map(json.loads, events.stdout.splitlines()) if event.get("notice")]
    assert events.returncode == 0 and notices == ["This is GPL."] and "This is GPL." in events.stderr
    place.profile("extra", more='platforms = ["plan9", "amiga"]\n', tiny="VALUE = 2\n")
    refused = place.install("--profile", "extra", "--events")
    assert error_of(refused)["code"] == "profile_unsupported" and "plan9, amiga" in refused.stderr
    assert len(place.environments()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_an_installation_for_a_process_ends_with_it(
    place: Place, tmp_path: Path, processes: list["subprocess.Popen[str]"]
) -> None:
    source, reached, _ = gate(tmp_path)
    place.profile("extra", tiny=source)
    host = subprocess.Popen(["sleep", "60"])
    arguments = ("--profile", "extra", "--wheels", str(place.wheels), "--watch-pid", str(host.pid))
    processes.append(place.start("install", *arguments))
    wait_for(reached.exists)
    assert os.getpriority(os.PRIO_PROCESS, int(reached.read_text())) == min(19, os.nice(0) + 10)
    host.kill()  # and not waited for: nobody reaps one whose parent was killed with it, for a while
    assert processes[0].wait(timeout=15) == 1
    wait_for(lambda: not is_running(int(reached.read_text())), timeout_s=15)
    host.wait()
    assert not place.finished()


# --- The repository's own


def lock_script() -> Any:
    spec = importlib.util.spec_from_file_location("lock_script", PROFILES / "lock.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cpu_lock_is_torchs_lock_without_cuda() -> None:
    normal, cpu = ((PROFILES / name).read_text(encoding="utf-8") for name in ("torch.lock", "torch-cpu.lock"))
    hashes = (PROFILES / "torch-cpu.sha256").read_text(encoding="utf-8")
    assert lock_script().cpu_variant(normal, hashes) == cpu
    assert "nvidia-" in normal and not any(word in cpu for word in ("nvidia-", "triton", "cuda-"))
    for python in ("cp310", "cp311", "cp312", "cp313"):
        for machine in ("x86_64", "aarch64"):
            assert f"+cpu-{python}-{python}-manylinux_2_28_{machine}.whl\n" in hashes
    assert cpu.count("torch @ https://") == 8
    with pytest.raises(ValueError, match="is not of torch"):
        lock_script().cpu_variant(normal.replace("\ntorch==", "\ntorch==9."), hashes)


def test_a_release_that_leaves_a_python_out_is_noticed(
    tmp_path: Path, uv_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path, "tiny", {"tiny.py": ""})
    for python in ("cp310", "cp311", "cp313"):
        shutil.copy(wheel, tmp_path / f"tiny-1.0-{python}-none-any.whl")
    wheel.unlink()
    lock = tmp_path / "tiny.lock"
    lock.write_text(lock_text([tmp_path / "tiny-1.0-cp310-none-any.whl"]))
    monkeypatch.setenv("PATH", uv_path)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    script = lock_script()
    gaps = script.find_gaps(lock)
    assert [gap[:2] for gap in gaps] == [("3.12", platform) for platform in script.PLATFORMS]
    assert "tiny" in gaps[0][2]


def test_python_3_12_has_a_pocketsphinx() -> None:
    """Its 5.1.1 has wheels for 3.11 and 3.13 only, and base cannot be made where one wheel is missing."""
    lock = (PROFILES / "base.lock").read_text(encoding="utf-8")
    [marker] = re.findall(r"^pocketsphinx==5\.1\S* ; (.*) \\$", lock, re.MULTILINE)
    assert marker == "python_full_version == '3.11.*' or python_full_version >= '3.13'"


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.lock")), ids=lambda path: path.stem)
def test_locks_are_complete(path: Path) -> None:
    entries = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    assert entries and all("==" in entry and entry.endswith("\\") for entry in entries), "a version and hashes for each"
    # A runner in it needs these, whatever else its profile is for.
    assert {"msgspec", "numpy", "pydantic"} <= {entry.partition("==")[0] for entry in entries}
