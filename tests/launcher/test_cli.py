"""The command line, and what the launcher becomes: seen from a fake `sidecar` that it really starts."""

import ast
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from .conftest import ROOT, Place, is_running, wait_for


@pytest.fixture
def installed(place: Place) -> Place:
    result = place.install()
    assert result.returncode == 0, result.stderr
    return place


def called(result: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    call: dict[str, Any] = json.loads(result.stdout)
    return call


def test_run_becomes_the_supervisor(installed: Place) -> None:
    flags = ["--port", "8123", "--auth", "off", "--watch-pid", "1", "--events"]
    call = called(installed.launch(*flags))
    assert call["argv"] == ["supervise", "--port", "8123", "--auth", "off", "--watch-pid", "1", "--events"]
    assert Path(call["prefix"]) == installed.finished()[0]
    assert called(installed.launch("run"))["argv"] == called(installed.launch())["argv"] == ["supervise"]


def test_what_the_supervisor_inherits(installed: Place) -> None:
    leaks: dict[str, Any] = {
        "PYTHONPATH": "/tmp",
        "LD_LIBRARY_PATH": "/tmp",
        "VIRTUAL_ENV": "/x",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    call = called(installed.launch("run", **leaks, PIP_INDEX_URL="http://mirror/simple", LOG_LEVEL="DEBUG"))
    env = call["env"]
    assert {key: value for key, value in env.items() if key.startswith("PYTHON")} == {
        "PYTHONPATH": str(installed.folder),
        "PYTHONUTF8": "1",
    }
    assert "LD_LIBRARY_PATH" not in env and "VIRTUAL_ENV" not in env
    assert (env["PIP_INDEX_URL"], env["LOG_LEVEL"]) == ("http://mirror/simple", "DEBUG")
    assert env["SIDECAR_HOME"] == str(installed.home)


def test_modules_in_the_hosts_folder_are_not_imported(installed: Place, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "sidecar").mkdir(parents=True)
    (host / "sidecar" / "__main__.py").write_text("raise SystemExit('not ours')\n")
    installed.env["SIDECAR_HOME"] = os.path.relpath(installed.home, host)
    call = called(installed.launch("run", cwd=host))
    assert call["cwd"] == str(installed.folder)
    assert call["env"]["SIDECAR_HOME"] == str(installed.home)


def test_run_makes_the_environment_first(place: Place) -> None:
    result = place.launch("--events", "--wheels", str(place.wheels))
    *events, call = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["phase"] for event in events] == ["installing"] * len(events) and events
    assert call["argv"] == ["supervise", "--events"]


def test_doctor_gets_its_own_options(installed: Place) -> None:
    words = ["--test", "health", "--json"]
    assert called(installed.launch("doctor", *words))["argv"] == ["doctor", *words]


def test_models_gets_its_own_arguments(installed: Place) -> None:
    words = ["pull", "some-model", "--accept-licence", "--events", "--json"]
    assert called(installed.launch("models", *words))["argv"] == ["models", *words]


def test_questions_go_to_the_installed_sidecar(installed: Place) -> None:
    assert called(installed.launch("status"))["argv"] == ["status"]
    assert called(installed.launch("stop"))["argv"] == ["stop"]
    assert called(installed.launch("logs", "-f", "-n", "7"))["argv"] == ["logs", "-f", "-n", "7"]


def test_questions_after_an_update_go_to_the_old_environment(installed: Place) -> None:
    [old] = installed.finished()
    installed.profile("base", tiny="VALUE = 2\n")
    assert Path(called(installed.launch("status"))["prefix"]) == old


@pytest.mark.parametrize(("command", "exit_code"), [("status", 3), ("stop", 0), ("logs", 1)])
def test_questions_without_an_environment(place: Place, command: str, exit_code: int) -> None:
    result = place.launch(command)
    assert result.returncode == exit_code
    assert "nothing is installed" in result.stderr and not place.home.exists()


def test_test_runs_pytest_from_the_repository_root(place: Place) -> None:
    source = "import json, os, sys\nif __name__ == '__main__':\n"
    source += "    print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['PYTHONPATH']]))\n"
    place.profile("dev", pytest=source)
    result = place.launch("test", "--wheels", str(place.wheels), "tests/x.py", "-k", "one or two", "-x", "--port=1")
    assert json.loads(result.stdout) == [
        ["tests/x.py", "-k", "one or two", "-x", "--port=1"],
        str(place.folder),
        str(place.folder),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["--port", "99999"], "--port needs a number up to 65535, not '99999'"),
        (["--port"], "--port needs a number up to 65535"),
        (["--detach=yes"], "--detach needs no value"),
        (["status", "--port", "1"], "status does not know '--port'"),
        (["run", "--auth", "maybe"], "'maybe'"),
        (["--profile", "../profiles/base"], "no profile '../profiles/base'; there are: base"),
        (["install", "--wheels", "/no/such/folder"], "--wheels '/no/such/folder' is no folder"),
        (["try"], "TEXT"),
    ],
)
def test_bad_usage_is_one_line_and_78(place: Place, arguments: list[str], words: str) -> None:
    result = place.launch(*arguments)
    assert result.returncode == 78
    assert words in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["run"], ["try", "hello"], ["doctor"], ["models", "list"]])
def test_the_sidecar_itself_does_not_run_in_a_profile_of_models(place: Place, command: list[str]) -> None:
    place.profile("extra", tiny="VALUE = 1\n")
    result = place.launch(*command, "--profile", "extra")
    assert result.returncode == 78 and "install --with extra" in result.stderr
    assert not place.environments(), "gigabytes are not fetched for that"


def test_help_names_every_command_and_option(place: Place, launcher: ModuleType) -> None:
    text = place.launch("--help").stdout
    options = ("--detach", "--port", "--auth", "--events", "--watch-pid", "--profile", "--wheels")
    assert [word for word in (*launcher.COMMANDS, *options) if word not in text] == []


@pytest.mark.parametrize("command", ["models", "doctor"])
def test_commands_of_the_sidecars_own_answer_for_their_help(place: Place, command: str) -> None:
    assert place.launch(command, "--help").stdout.startswith("usage: python3 launcher.py"), (
        "nothing is installed for it"
    )


@pytest.mark.parametrize("words", [["models", "--help"], ["models", "pull", "-h"], ["doctor", "--help"]])
def test_installed_commands_are_asked_themselves(installed: Place, words: list[str]) -> None:
    assert json.loads(installed.launch(*words).stdout)["argv"][-len(words) :] == words


# --- Detached and temporary instances


def test_detach_returns_when_it_is_ready(installed: Place) -> None:
    result = installed.launch("--detach", FAKE_SIDECAR="serve")
    assert result.returncode == 0, result.stderr
    handshake = json.loads((installed.home / "run" / "sidecar.json").read_text())
    pid = handshake["supervisor"]["pid"]
    try:
        assert is_running(pid)
        assert os.getsid(pid) == pid
        assert handshake["base_url"] in result.stdout and f"pid {pid}" in result.stdout
        assert str(installed.home / "run" / "sidecar.json") in result.stdout
        assert handshake["token"] not in result.stdout
        attached = installed.launch("try", "I am so happy today!", FAKE_SIDECAR="fail")
        assert attached.stdout.startswith("joy  0.97   (minilm, 3.1 ms)\nneutral 0.03"), attached.stderr
        assert is_running(pid)
    finally:
        os.kill(pid, 9)


def test_detach_says_why_it_failed(installed: Place) -> None:
    result = installed.launch("--detach", FAKE_SIDECAR="fail")
    assert result.returncode == 1
    assert "did not start (exit code 1" in result.stderr and "no socket for you" in result.stderr
    again = installed.launch("--detach", FAKE_SIDECAR="fail")
    assert again.stderr.count("no socket for you") == 1, "what was said before is no evidence of now"


def test_a_start_in_the_background_keeps_no_token(installed: Place) -> None:
    assert installed.launch("--detach", FAKE_SIDECAR="attach").returncode == 1
    assert "secret-token" not in (installed.home / "logs" / "launcher.out").read_text()


def test_try_starts_and_ends_an_instance_of_its_own(installed: Place) -> None:
    result = installed.launch("try", "I am so happy today!", FAKE_SIDECAR="serve")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "joy  0.97   (minilm, 3.1 ms)\nneutral 0.03\n"
    assert (installed.home / "ended").read_text() == "cleanly"


def test_try_says_what_the_server_said(installed: Place) -> None:
    result = installed.launch("try", "fail", FAKE_SIDECAR="serve")
    assert result.returncode == 1
    assert result.stderr == "ml-sidecar: the sidecar answered 503: the model is not there\n"
    assert (installed.home / "ended").exists()


def test_a_handshake_of_the_dead_is_not_believed(installed: Place) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = {"phase": "ready", "supervisor": {"pid": dead.pid}, "host": "127.0.0.1", "port": 1, "instance_id": "x"}
    (installed.home / "run").mkdir()
    (installed.home / "run" / "sidecar.json").write_text(json.dumps(stale))
    assert installed.launch("try", "hello", FAKE_SIDECAR="serve").returncode == 0


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', '{"phase": "ready"}', '{"phase": "ready", "supervisor": null}', '{"phase": "failed"}']
)
def test_what_is_no_handshake_is_not_believed(installed: Place, text: str) -> None:
    (installed.home / "run").mkdir()
    (installed.home / "run" / "sidecar.json").write_text(text)
    result = installed.launch("try", "hello", FAKE_SIDECAR="serve")
    assert result.returncode == 0, result.stderr


def test_try_asks_again_where_the_instance_that_it_asked_was_ending(
    installed: Place, processes: list["subprocess.Popen[str]"]
) -> None:
    other = installed.start(FAKE_SIDECAR="serve")
    processes.append(other)
    wait_for((installed.home / "run" / "sidecar.json").exists)
    result = installed.launch("try", "end", FAKE_SIDECAR="serve")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("joy")
    assert other.wait(timeout=20) == 0


def test_a_start_that_attached_to_one_that_ended_starts_one_itself(installed: Place) -> None:
    started = time.monotonic()
    result = installed.launch("try", "hello", FAKE_SIDECAR="late")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 30  # not the time-out


def test_detach_leaves_nothing_that_nobody_could_find(
    installed: Place, launcher: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "ROOT", str(installed.folder))
    monkeypatch.setattr(launcher, "READY_TIMEOUT_S", 0.5)
    for name, value in {**installed.env, "FAKE_SIDECAR": "mute"}.items():
        monkeypatch.setenv(name, value)
    started = []
    init = launcher.Starting.__init__
    monkeypatch.setattr(
        launcher.Starting, "__init__", lambda self, *a, **k: (init(self, *a, **k), started.append(self))[0]
    )
    with pytest.raises(launcher.Failure, match="was not ready"):
        launcher.detach(str(installed.finished()[0] / "bin" / "python"), ["--detach"], launcher.Reporter(False))
    assert started[0].process.returncode is not None


# --- Python versions


def test_the_file_parses_on_old_pythons() -> None:
    ast.parse((ROOT / "launcher.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def pretender(folder: Path, version: tuple[int, int, int]) -> Path:
    """A Python that claims to be of this version."""
    pretend = f"import runpy, sys; sys.version_info = {version}; del sys.argv[0]; "
    pretend += "runpy.run_path(sys.argv[0], None, '__main__')"
    path = folder / f"python-{version[1]}"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(pretend)} "$@"\n')
    path.chmod(0o755)
    return path


def old_pythons(folder: Path) -> list[Path]:
    """Those that pyenv has, and always one that pretends to be 3.8 (that the file parses there is tested above)."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    real = [path for minor in (6, 7, 8, 9) for path in sorted(versions.glob(f"3.{minor}.*/bin/python"))[:1]]
    return [pretender(folder, (3, 8, 18)), *real]


def assert_refused(place: Place, python: Path, age: str) -> None:
    place.python = str(python)
    result = place.launch("--events", PATH="/nowhere")
    assert result.returncode == 1
    assert f"too {age}: install Python 3.10 to 3.13" in result.stderr and result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["error"]["code"] == f"python_too_{age}"


def test_an_old_python_is_told_so(place: Place, tmp_path: Path) -> None:
    for python in old_pythons(tmp_path):
        assert_refused(place, python, "old")


def test_a_python_that_the_locks_are_not_for_yet_is_told_so(place: Place, tmp_path: Path) -> None:
    assert_refused(place, pretender(tmp_path, (3, 14, 0)), "new")


@pytest.mark.parametrize("age", ["old", "new"])
def test_a_python_out_of_range_hands_over_to_one_within(place: Place, tmp_path: Path, age: str) -> None:
    stub = tmp_path / "uv-bin" / "python3.13"
    stub.write_text("#!/bin/sh\necho 'not selected' >&2\nexit 127\n")
    stub.chmod(0o755)
    name = f"python3.{sys.version_info[1]}"
    if name == stub.name:
        stub.unlink()
    (tmp_path / "uv-bin" / name).symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    place.python = str(old_pythons(tmp_path)[-1] if age == "old" else pretender(tmp_path, (3, 14, 0)))
    result = place.install()
    assert result.returncode == 0, result.stderr
    assert f"/{name}/" in str(next(place.finished()[0].glob("lib/*/site-packages/tiny.py")))


# --- Parts


def test_folders_are_those_of_the_settings(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = pytest.importorskip("sidecar.settings", reason="needs the base profile's packages")
    for name in ("SIDECAR_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    cases: list[dict[str, str]] = [
        {},
        {"XDG_DATA_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        {"XDG_DATA_HOME": "relative"},
        {"SIDECAR_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        {"SIDECAR_HOME": "~/x"},
        {"SIDECAR_HOME": "relative"},
        {"SIDECAR_HOME": ""},
    ]
    for case in cases:
        with monkeypatch.context() as patch:
            for name, value in case.items():
                patch.setenv(name, value)
            ours = settings.Settings.load()
            theirs = (launcher.data_dir(), launcher.log_dir(), launcher.handshake_path())
            assert theirs == (str(ours.data_dir), str(ours.log_dir), str(ours.handshake_path)), case


def test_profiles_of_the_repository_can_be_read(launcher: ModuleType) -> None:
    for name in ("base", "dev"):
        description = launcher.Profile(name).describe()
        assert description["name"] == name and description["probe"] and description["size_mb"] > 100


@pytest.mark.parametrize(
    "line", ["probe = [", "a.b = 1", "size_mb = 1 # megabytes", "x = {}", "[table]", "x = 1\nx = 2"]
)
def test_toml_beyond_the_subset_is_refused(launcher: ModuleType, tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(line + "\n")
    with pytest.raises(launcher.Failure, match="expected one `key = JSON value`"):
        launcher.read_simple_toml(str(path))


@pytest.mark.parametrize(
    ("release", "cure"),
    [
        ('ID=ubuntu\nID_LIKE="debian"\n', f"python3.{sys.version_info[1]}-venv"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt install python3-venv"),
        ("ID=arch\n", "pacman -S python"),
        ('ID="fedora"\n', "dnf install python3"),
        ("", "install a complete Python"),
    ],
)
def test_the_cure_names_the_distributions_package(launcher: ModuleType, release: str, cure: str) -> None:
    assert cure in launcher.venv_cure(release)


def test_pip_settings_are_translated_for_uv(launcher: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b\n  https://c\ncert = /ca\n"
    )
    env = {"PIP_CONFIG_FILE": str(config), "PIP_FIND_LINKS": "/x /y", "XDG_CONFIG_HOME": "/nowhere"}
    translated = launcher.with_pip_settings(dict(env))
    assert translated["UV_DEFAULT_INDEX"] == "https://a/simple"
    assert translated["UV_INDEX"] == "https://b https://c"
    assert translated["UV_FIND_LINKS"] == "/x,/y"
    assert translated["SSL_CERT_FILE"] == "/ca"
    own = {**env, "UV_DEFAULT_INDEX": "https://mine"}
    assert launcher.with_pip_settings(dict(own)) == own


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk_full"),
        ("error: failed to copy file: Disk quota exceeded (os error 122)", "disk_full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "hash_mismatch"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] …'))", "tls_untrusted"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "no_network"),
        ("error: Request failed: dns error: failed to lookup address information", "no_network"),
        ("OSError: [Errno 30] Read-only file system: '/home/x'", "home_not_writable"),
        ("Error: Command '…' returned: ensurepip is not available", "venv_missing"),
        ("ERROR: No matching distribution found for numpy==2.5.5", "package_missing"),
        ("something else", "install_failed"),
    ],
)
def test_what_the_installers_say_is_understood(launcher: ModuleType, line: str, code: str) -> None:
    assert launcher.explain_step("pip", 1, ["Collecting x", line], None, "/log").code == code


def test_a_python_without_a_build_is_told_to_try_another(launcher: ModuleType) -> None:
    failure = launcher.explain_step("pip", 1, ["ERROR: No matching distribution found for x==1"], None, "/log")
    assert "try another from 3.10 to 3.13" in failure.message


# --- The fast path


def test_starting_with_a_finished_environment_imports_little(installed: Place) -> None:
    command = [installed.python, "-S", "-X", "importtime", *installed.command("install")[1:]]
    result = subprocess.run(command, env=installed.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "hashlib" in modules
    assert not modules & {"argparse", "json", "re", "contextlib", "subprocess", "shutil", "typing", "http.client"}


def test_starting_with_a_finished_environment_is_fast(installed: Place) -> None:
    resource = pytest.importorskip("resource", reason="Windows does not tell what children have used")

    def children_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(used.ru_utime + used.ru_stime)

    def best_s(*arguments: str) -> float:
        """Of a processor, which is not shared with whatever else this machine does."""
        times = []
        for _ in range(9):
            before_s = children_s()
            subprocess.run([installed.python, *arguments], env=installed.env, check=True, capture_output=True)
            times.append(children_s() - before_s)
        return min(times)

    launcher_py = str(installed.folder / "launcher.py")
    best_s("-c", "pass")
    bare_s = best_s("-c", "pass")
    assert best_s(launcher_py, "install") < 3.5 * bare_s, "it takes about twice as long as a Python that does nothing"


def test_logs_of_a_failed_installation_are_kept(place: Place) -> None:
    place.profile("base", tiny="raise RuntimeError('all of it')\n")
    place.install()
    [log] = (place.home / "env").glob("base-*.log")
    wait_for(log.exists)
    assert "Traceback" in log.read_text()


def test_events_of_the_launcher_fit_the_schema_of_the_handshake(place: Place) -> None:
    schema = json.loads((ROOT / "clients" / "handshake.schema.json").read_text(encoding="utf-8"))
    done = place.launch("install", "--events", "--wheels", str(place.wheels))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    failed = place.launch("run", "--events", "--profile", "nowhere")
    events += [json.loads(line) for line in failed.stdout.splitlines()]
    assert {event["phase"] for event in events} == {"installing", "failed"}
    for event in events:
        jsonschema.validate(event, schema)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell's redirections")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_host_may_start_us_with_closed_descriptors(installed: Place, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(installed.command('status'))} {closed}"], env=installed.env, timeout=30
    )
    assert done.returncode == 0
