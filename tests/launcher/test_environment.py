"""How environments are made, shared, refused and repaired: real ones, made by uv or pip from tiny wheels."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Place, gate, is_running, wait_for

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and namespaces")


def python_of(root: Path) -> Path:
    return root / "bin" / "python"


def value_in(root: Path) -> str:
    command = [str(python_of(root)), "-I", "-c", "import tiny; print(tiny.VALUE)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def error_of(result: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """The error of the last event, after checking that people read the same on stderr."""
    event = json.loads(result.stdout.splitlines()[-1])
    assert event["phase"] == "failed"
    assert event["error"]["message"] in result.stderr
    assert "Traceback" not in result.stderr
    error: dict[str, str] = event["error"]
    return error


def test_uv_makes_it_once(place: Place) -> None:
    result = place.install()
    assert result.returncode == 0, result.stderr
    [root] = place.finished()
    assert value_in(root) == "1"
    assert result.stdout == f"base  {python_of(root)}\n"
    stamp = json.loads((root / "complete.json").read_text())
    assert stamp["profile"] == "base" and len(stamp["lock_sha256"]) == 64
    again = place.install()
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads((root / "complete.json").read_text()) == stamp


def test_pip_makes_it_without_uv(pip_place: Place) -> None:
    result = pip_place.install("--events")
    assert result.returncode == 0, result.stderr
    [root] = pip_place.finished()
    assert value_in(root) == "1"
    assert "uv = " not in (root / "pyvenv.cfg").read_text()
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["phase"] for event in events} == {"installing"} and {event["schema"] for event in events} == {1}
    assert events[-1]["progress"] == {"item": "finished", "done": 1, "total": 1, "unit": "packages"}
    assert "tiny" in [event["progress"]["item"] for event in events]


@linux_only
def test_progress_stays_on_one_line_of_a_terminal(place: Place) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = place.command("install", "--wheels", str(place.wheels))
    result = subprocess.run(command, env=place.env, stdout=subprocess.DEVNULL, stderr=theirs, timeout=30)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert result.returncode == 0
    assert "installing 1/1 tiny\r" in text and text.endswith("environment is ready\r\n") and text.count("\n") == 1


def test_another_lock_is_another_environment(place: Place) -> None:
    assert place.install().returncode == 0
    place.profile("base", tiny="VALUE = 2\n")
    assert place.install().returncode == 0
    assert sorted(value_in(root) for root in place.finished()) == ["1", "2"]


def test_with_adds_profiles(place: Place) -> None:
    place.profile("extra", tiny="VALUE = 1\n", another="")
    assert place.install("--with", "extra").returncode == 0
    assert [root.name.split("-")[0] for root in place.finished()] == ["base", "extra"]


def test_a_uv_that_fails_is_replaced_by_pip(pip_place: Place, tmp_path: Path) -> None:
    broken = tmp_path / "no-bin" / "uv"
    broken.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 2\n")
    broken.chmod(0o755)
    result = pip_place.install()
    assert result.returncode == 0, result.stderr
    assert "uv could not do it, going on with pip" in result.stderr and "out of order" in result.stderr
    assert len(pip_place.finished()) == 1


@linux_only
def test_sigkill_during_the_probe_is_repaired(
    place: Place, tmp_path: Path, processes: list["subprocess.Popen[str]"]
) -> None:
    source, reached, go = gate(tmp_path)
    place.profile("base", tiny="VALUE = 1\n" + source)
    first = place.start("install", "--wheels", str(place.wheels))
    processes.append(first)
    wait_for(reached.exists)
    first.kill()
    first.wait()
    assert place.environments() and not place.finished()
    assert is_running(int(reached.read_text()))  # the orphaned step still holds the lock …
    second = place.start("install", "--wheels", str(place.wheels))
    processes.append(second)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()  # … so nobody builds into the same folder
    go.touch()
    _, errors = second.communicate(timeout=30)
    assert second.returncode == 0, errors
    assert "repairing" in errors
    assert value_in(place.finished()[0]) == "1"


@pytest.mark.parametrize("tool", ["place", "pip_place"])
def test_sigkill_while_it_is_made_is_repaired(tool: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place: Place = request.getfixturevalue(tool)
    source, _, go = gate(tmp_path)  # it cannot come to its end before it is killed
    place.profile("base", tiny="VALUE = 1\n" + source)
    first = place.start("install", "--wheels", str(place.wheels))
    wait_for(lambda: [root for root in place.environments() if (root / "pyvenv.cfg").exists()])
    first.kill()
    first.wait()
    assert not place.finished()
    go.touch()
    first.communicate()  # ends with the last step
    result = place.install()
    assert result.returncode == 0, result.stderr
    assert "repairing" in result.stderr
    assert value_in(place.finished()[0]) == "1"


def test_two_at_once_make_one(place: Place, tmp_path: Path, processes: list["subprocess.Popen[str]"]) -> None:
    source, reached, go = gate(tmp_path)
    place.profile("base", tiny="VALUE = 1\n" + source)
    first = place.start("install", "--wheels", str(place.wheels))
    processes.append(first)
    wait_for(reached.exists)
    second = place.start("install", "--wheels", str(place.wheels))
    processes.append(second)
    assert second.stderr is not None
    assert "another launcher is making the base environment" in second.stderr.readline()
    go.touch()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert "installing" not in outputs[1][1]
    assert outputs[0][0] == outputs[1][0]


def test_a_vanished_interpreter_is_repaired(place: Place) -> None:
    assert place.install().returncode == 0
    [root] = place.finished()
    python_of(root).unlink()
    python_of(root).symlink_to("/gone/python3")
    result = place.install()
    assert result.returncode == 0, result.stderr
    assert "repairing" in result.stderr
    assert value_in(root) == "1"


def test_an_import_that_fails_leaves_no_stamp(place: Place) -> None:
    place.profile("base", tiny="raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    result = place.install("--events")
    assert result.returncode == 1
    assert error_of(result)["code"] == "environment_broken" and "libgomp.so.1" in result.stderr
    assert not place.finished()


@pytest.mark.parametrize("tool", ["place", "pip_place"])
def test_a_wrong_hash_is_refused(tool: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(tool)
    place.profile("base", wrong_hash=True, tiny="VALUE = 1\n")
    result = place.install("--events")
    assert result.returncode == 1
    assert error_of(result)["code"] == "hash_mismatch"
    assert "going on with pip" not in result.stderr
    assert not place.finished()


@pytest.mark.parametrize("tool", ["place", "pip_place"])
def test_a_package_that_is_missing_is_named(tool: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(tool)
    (place.wheels / "tiny-1.0-py3-none-any.whl").unlink()
    result = place.install("--events")
    assert result.returncode == 1
    error = error_of(result)
    assert error["code"] == "package_missing" and str(place.wheels) in error["message"]


def test_foreign_python_settings_do_not_leak_in(place: Place, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "tiny.py").write_text("VALUE = 'poisoned'\n")
    (poison / "pip.py").write_text("raise SystemExit('poisoned')\n")
    seen = tmp_path / "seen.json"
    source = f"import json, os\nwith open({str(seen)!r}, 'w') as file: json.dump(dict(os.environ), file)\n"
    place.profile("base", tiny="VALUE = 1\n" + source)
    leaks = {
        "PYTHONPATH": str(poison),
        "PYTHONHOME": sys.base_prefix,
        "PYTHONSTARTUP": "/nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": str(poison),
        "VIRTUAL_ENV": "/nowhere",
        "CONDA_PREFIX": "/nowhere",
        "PIP_TARGET": str(poison),
        "UV_PYTHON": "3.4",
    }
    result = place.install(**leaks)
    assert result.returncode == 0, result.stderr
    environment = json.loads(seen.read_text())
    assert value_in(place.finished()[0]) == "1"
    assert not set(leaks) & set(environment)
    assert environment["PYTHONUTF8"] == "1" and environment["HOME"] == place.env["HOME"]


@linux_only
def test_without_venv_module_names_the_package(pip_place: Place, tmp_path: Path) -> None:
    pip_place.python = str(python_without(tmp_path, "ensurepip"))
    result = pip_place.install("--events")
    assert result.returncode == 1
    error = error_of(result)
    assert error["code"] == "venv_missing"
    if "debian" in Path("/etc/os-release").read_text():
        assert f"python3.{sys.version_info[1]}-venv" in error["message"]


def python_without(folder: Path, module: str) -> Path:
    """A real interpreter whose standard library lacks `module`, as on Debian without python3-venv."""
    version = f"python3.{sys.version_info[1]}"
    library = folder / "prefix" / "lib" / version
    library.mkdir(parents=True)
    for entry in Path(os.__file__).parent.iterdir():
        if entry.name not in (module, "site-packages", "dist-packages"):
            (library / entry.name).symlink_to(entry)
    python = folder / "prefix" / "bin" / version
    python.parent.mkdir()
    shutil.copy2(Path(sys._base_executable).resolve(), python)  # type: ignore[attr-defined]
    probe = f"import sys, importlib.util as u; sys.exit(u.find_spec({module!r}) is not None)"
    if subprocess.run([str(python), "-c", probe], capture_output=True).returncode != 0:
        pytest.skip("needs an interpreter that finds its library beside itself")
    return python


def test_no_network_says_so(pip_place: Place) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        result = pip_place.launch("install", "--events", PIP_INDEX_URL=index, PIP_RETRIES="1")
    assert result.returncode == 1
    error = error_of(result)
    assert error["code"] == "no_network" and "--wheels" in error["message"]


def test_uv_gets_the_index_that_pip_is_configured_for(place: Place, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
        env: dict[str, Any] = {
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
            "PIP_RETRIES": "1",
            "UV_HTTP_RETRIES": "0",
        }
        result = place.launch("install", "--events", **env)
    assert error_of(result)["code"] == "no_network"
    assert "uv could not do it" in result.stderr and index in result.stderr


def test_too_little_space_is_said_before_anything_is_made(place: Place) -> None:
    place.profile("base", size_mb=10**9, tiny="VALUE = 1\n")
    result = place.install("--events")
    assert result.returncode == 1
    error = error_of(result)
    assert error["code"] == "disk_full" and "SIDECAR_HOME" in error["message"]
    assert not place.environments()


def mounted(folder: Path, options: str) -> tuple[str, ...]:
    """A command prefix that runs the rest with a small file system at `folder`, in a mount namespace of its own."""
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
    for flags in (["-m"], ["-rm"]):
        prefix = ("unshare", *flags, "sh", "-c", script, "sh", options, str(folder))
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    pytest.skip("needs unshare with the right to mount a tmpfs")


@linux_only
def test_disk_full_in_the_middle(place: Place) -> None:
    place.home.mkdir()
    place.profile("base", tiny="VALUE = 1\n", big="# " + "0" * 20_000_000 + "\n")
    prefix = mounted(place.home, "size=6m")
    result = place.launch("install", "--events", "--wheels", str(place.wheels), wrapper=prefix)
    assert result.returncode == 1
    assert error_of(result)["code"] == "disk_full"


@linux_only
def test_read_only_home(place: Place) -> None:
    place.home.mkdir()
    result = place.launch("install", "--events", wrapper=mounted(place.home, "size=6m,ro"))
    assert result.returncode == 1
    error = error_of(result)
    assert error["code"] == "home_not_writable" and "SIDECAR_HOME" in error["message"]


@linux_only
def test_a_full_disk_is_told_before_anything_starts(place: Place) -> None:
    """Without room for its handshake an instance would run that nobody can find."""
    assert place.install().returncode == 0
    full = place.home / "logs"
    full.mkdir()
    prefix = (*mounted(full, "size=64k"), "sh", "-c", f'cat /dev/zero >"{full}/fill" 2>/dev/null; exec "$@"', "sh")
    result = place.launch("run", "--detach", "--events", wrapper=prefix, FAKE_SIDECAR="mute")
    assert error_of(result)["code"] == "disk_full"


@linux_only
@pytest.mark.parametrize("command", ["install", "run", "status", "profiles"])
def test_an_account_without_a_home_is_told_so(place: Place, command: str) -> None:
    unknown = "import os, pwd, runpy, sys; pwd.getpwuid = lambda uid: {}[uid]; del sys.argv[0]; "
    unknown += "runpy.run_path(sys.argv[0], None, '__main__')"
    cwd = place.folder / "here"
    cwd.mkdir()
    env = {key: value for key, value in place.env.items() if key not in ("HOME", "SIDECAR_HOME")}
    arguments = [sys.executable, "-c", unknown, *place.command(command)[1:]]
    result = subprocess.run(arguments, env=env, cwd=cwd, capture_output=True, text=True, timeout=30)
    assert result.returncode == 78
    assert "home folder is not known" in result.stderr and "SIDECAR_HOME" in result.stderr
    assert not list(cwd.iterdir())


def test_a_finished_environment_that_lost_a_part_is_made_anew(place: Place) -> None:
    assert place.install("--repair").returncode == 0
    [root] = place.finished()
    stamp = (root / "complete.json").read_bytes()
    whole = place.install("--repair")
    assert (whole.returncode, whole.stderr) == (0, ""), "what works is left alone"
    assert (root / "complete.json").read_bytes() == stamp and not list(root.parent.glob("*.log"))
    [module] = root.glob("lib/*/site-packages/tiny.py")
    module.unlink()
    shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)
    assert place.install().stderr == ""
    mended = place.install("--repair")
    assert mended.returncode == 0, mended.stderr
    assert "No module named 'tiny'" in mended.stderr and "repairing" in mended.stderr
    assert value_in(root) == "1"


def test_a_file_in_place_of_the_home(place: Place) -> None:
    place.home.write_text("")
    error = error_of(place.install("--events"))
    assert error["code"] == "home_not_writable" and str(place.home) in error["message"]


@linux_only
@pytest.mark.parametrize("end", ["host closes stdin", "host is killed", "SIGTERM"])
def test_an_installation_ends_with_its_host(
    place: Place, tmp_path: Path, processes: list["subprocess.Popen[str]"], end: str
) -> None:
    source, reached, _ = gate(tmp_path)
    place.profile("base", tiny="VALUE = 1\n" + source)
    host = subprocess.Popen(["sleep", "60"])
    process = place.start("run", "--wheels", str(place.wheels), "--watch-pid", str(host.pid))
    processes.append(process)
    wait_for(reached.exists)
    step = int(reached.read_text())
    if end == "host closes stdin":
        assert process.stdin is not None
        process.stdin.close()
    elif end == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    host.kill()
    host.wait()
    assert process.wait(timeout=15) in (1, 128 + signal.SIGTERM)
    wait_for(lambda: not is_running(step), timeout_s=15)
    assert not place.finished()
