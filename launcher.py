#!/usr/bin/env python3
"""Make ML Sidecar's environment once, then become its supervisor. Standard library only, imports nothing of ours.

The main path is `main` → `run` → `ensure_environment` → `become`. With a finished environment that takes milliseconds,
so what only an installation or a subcommand needs is imported where it is used.
"""

import os
import sys
import time

ROOT = os.path.dirname(os.path.realpath(__file__))
OLDEST, NEWEST = (3, 10), (3, 13)

# DESIGN.md, "Handshake": a host parses the same shape before there is a supervisor.
_HANDSHAKE = """schema protocol app_version instance_id phase progress supervisor server host port base_url token
    health_path device device_reason restarts last_exit log_dir updated_at"""


def event_line(phase: str, **fields: object) -> str:
    """One NDJSON line in the handshake's shape; what only a supervisor knows is null. Ends with a newline."""
    import json

    known = {"schema": 1, "phase": phase, "updated_at": time.time(), **fields}
    return json.dumps({**dict.fromkeys(_HANDSHAKE.split()), **known}) + "\n"


def _use_suitable_python() -> None:
    """Go on with a Python from PATH that the locks are for, or say what is missing. This file must parse on 3.6."""
    import shutil
    import subprocess

    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        python = shutil.which(f"python3.{minor}")
        # It is tried first because version managers put stubs on PATH that only say "not selected".
        probe = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
        if python and subprocess.call([python, "-c", probe], stderr=subprocess.DEVNULL) == 0:
            os.execv(python, [python, *sys.argv])
    age = "old" if sys.version_info[:2] < OLDEST else "new"
    found = f"Python {sys.version_info[0]}.{sys.version_info[1]} is too {age}"
    message = f"{found}: install Python 3.10 to 3.13 and start launcher.py with it"
    if "--events" in sys.argv:
        sys.stdout.write(event_line("failed", error={"code": f"python_too_{age}", "message": message}))
    sys.stderr.write(f"ml-sidecar: {message}\n")
    sys.exit(1)


if not OLDEST <= sys.version_info[:2] <= NEWEST:
    _use_suitable_python()

TYPE_CHECKING = False  # importing typing costs more than the rest of this file
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import Any

APP_NAME = "ml-sidecar"
EXIT_USAGE = 78  # sysexits.h EX_CONFIG
EXIT_NOT_RUNNING = 3  # Linux Standard Base: "program is not running"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0  # the supervisor itself takes at most 15 s
WINDOWS = os.name == "nt"


class Failure(Exception):
    """An error that people can cure: a stable code, one line that names the cure, and the exit code."""

    def __init__(self, code: str, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code, self.message, self.exit_code = code, message, exit_code


class Reporter:
    """Says what happens: one changing line on a terminal, plain lines elsewhere, NDJSON on stdout with `--events`."""

    def __init__(self, events: bool) -> None:
        self.events = events
        self._terminal = sys.stderr.isatty()
        self._open_line = False

    def note(self, text: str) -> None:
        self._write(f"ml-sidecar: {text}")

    def notice(self, text: str) -> None:
        """What the user should know of a licence, for an app to show as well."""
        self.note(text)
        if self.events:
            self._emit("installing", notice=text)

    def progress(self, item: str, done: int, total: int) -> None:
        if self.events:
            self._emit("installing", progress={"item": item, "done": done, "total": total, "unit": "packages"})
        else:
            self._write(f"ml-sidecar: installing {done}/{total} {item}"[:79], stay=self._terminal)

    def failed(self, failure: Failure) -> None:
        if self.events:
            self._emit("failed", error={"code": failure.code, "message": failure.message})
        self._write(f"ml-sidecar: {failure.message}")

    def _emit(self, phase: str, **fields: object) -> None:
        sys.stdout.write(event_line(phase, **fields))
        sys.stdout.flush()

    def _write(self, text: str, stay: bool = False) -> None:
        import contextlib

        clear = "\r" + " " * 79 + "\r" if self._open_line else ""
        with contextlib.suppress(OSError):  # a host that closed our stderr does not want to read this
            sys.stderr.write(clear + text + ("" if stay else "\n"))
            sys.stderr.flush()
        self._open_line = stay


# --- Folders: the same results as sidecar/settings.py, which a test holds against these


def data_dir() -> str:
    home = os.environ.get("SIDECAR_HOME")
    if home:
        return os.path.abspath(expand_user(home))
    return _user_dir("XDG_DATA_HOME", "~/.local/share", "~/Library/Application Support")


def log_dir() -> str:
    if os.environ.get("SIDECAR_HOME"):
        return os.path.join(data_dir(), "logs")
    if sys.platform == "darwin":
        return _user_dir("", "", "~/Library/Logs")
    return os.path.join(_user_dir("XDG_STATE_HOME", "~/.local/state", ""), "Logs" if WINDOWS else "log")


def _user_dir(variable: str, linux: str, macos: str) -> str:
    """platformdirs' folder for our name: an absolute XDG variable wins, on macOS too."""
    base = os.environ.get("LOCALAPPDATA" if WINDOWS else variable, "")
    if not os.path.isabs(base):
        base = "~\\AppData\\Local" if WINDOWS else macos if sys.platform == "darwin" else linux
    return os.path.join(expand_user(base), APP_NAME)


def expand_user(path: str) -> str:
    """Without its `~`. Raises Failure for the system's accounts that have no home: Python would leave the `~` there."""
    path = os.path.expanduser(path)
    if path.startswith("~"):
        message = "your home folder is not known (is HOME set?): set SIDECAR_HOME to a folder you can write to"
        raise Failure("home_unknown", message, EXIT_USAGE)
    return path


def handshake_path() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform == "linux" and not os.environ.get("SIDECAR_HOME") and os.path.isdir(runtime):
        if os.access(runtime, os.W_OK):
            return os.path.join(runtime, APP_NAME, "sidecar.json")
    return os.path.join(data_dir(), "run", "sidecar.json")


# --- Profiles: one TOML and one or two complete locks each (installer/profiles/README.md)


class Profile:
    """A profile and where its environment for this Python on this platform is, made or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.toml_path = os.path.join(profiles_dir(), name + ".toml")
        self.cpu_lock = os.path.join(profiles_dir(), name + "-cpu.lock")
        self.for_cpu = os.path.exists(self.cpu_lock) and sys.platform == "linux" and not wants_cuda()
        self.lock_path = self.cpu_lock if self.for_cpu else self.toml_path[:-5] + ".lock"
        try:
            if os.path.basename(name) != name or not os.path.exists(self.toml_path):
                raise FileNotFoundError(name)
            self.lock_text = read_text(self.lock_path)
        except OSError:
            message = f"no profile {name!r}; there are: {', '.join(profile_names())}"
            raise Failure("profile_unknown", message, EXIT_USAGE) from None
        self.root = os.path.join(data_dir(), "env", f"{name}-{environment_hash(self.lock_text)}")
        self.python = environment_python(self.root)
        self.stamp = os.path.join(self.root, "complete.json")

    def is_complete(self) -> bool:
        return is_finished(self.root)

    def describe(self) -> "dict[str, Any]":
        """The profile's TOML: description, probe (modules), size_mb (on disk) and more."""
        return read_simple_toml(self.toml_path)

    def state(self) -> str:
        """installed (for CPU or GPU), outdated (only an earlier lock's is finished), unfinished or absent."""
        import json

        locks = [path for path in (self.toml_path[:-5] + ".lock", self.cpu_lock) if os.path.exists(path)]
        digests = {sha256_of(read_text(path)) for path in locks}
        roots = environments(self.name)
        stamps = [json.loads(read_text(os.path.join(root, "complete.json"))) for root in roots if is_finished(root)]
        if any(stamp["lock_sha256"] in digests for stamp in stamps):
            return "installed"
        return "outdated" if stamps else "unfinished" if roots else "absent"


def profiles_dir() -> str:
    folder = os.environ.get("SIDECAR_PROFILES")
    return os.path.abspath(expand_user(folder)) if folder else os.path.join(ROOT, "installer", "profiles")


def profile_names() -> "list[str]":
    return sorted(entry[:-5] for entry in os.listdir(profiles_dir()) if entry.endswith(".toml"))


def wants_cuda() -> bool:
    """What SIDECAR_DEVICE says; else whether there is an NVIDIA GPU that this system, or container, may use."""
    device = os.environ.get("SIDECAR_DEVICE", "auto")
    if device in ("cpu", "cuda"):
        return device == "cuda"
    if WINDOWS:  # the driver brings it
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", "C:\\Windows"), "System32", "nvcuda.dll"))
    wsl = os.path.exists("/dev/dxg") and os.path.exists("/usr/lib/wsl/lib/libcuda.so.1")
    return wsl or any(name[:6] == "nvidia" and name[6:].isdigit() for name in os.listdir("/dev"))


def environments(name: str) -> "list[str]":
    """Folders of the profile's environments, of this lock and others, finished or not."""
    folder = os.path.join(data_dir(), "env")
    entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    roots = [os.path.join(folder, entry) for entry in entries if entry[:-13] == name and entry[-13] == "-"]
    return [root for root in roots if os.path.isdir(root)]


def read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def sha256_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def environment_hash(lock_text: str) -> str:
    """12 hex digits of everything that decides which wheels belong together: lock, Python and platform."""
    if sys.platform == "win32":
        machine = os.environ.get("PROCESSOR_ARCHITECTURE", "")
    else:
        machine = os.uname().machine
    multiarch = getattr(sys.implementation, "_multiarch", "")  # tells musl from glibc
    python = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
    return sha256_of("\n".join((lock_text, python, sys.platform, machine, multiarch)))[:12]


def environment_python(root: str) -> str:
    return os.path.join(root, "Scripts", "python.exe") if WINDOWS else os.path.join(root, "bin", "python")


def is_finished(root: str) -> bool:
    """Made to the end, and the Python behind it neither removed nor replaced by its next version."""
    if not os.path.exists(os.path.join(root, "complete.json")):
        return False
    try:
        lines = read_text(os.path.join(root, "pyvenv.cfg")).splitlines()
    except OSError:
        return False
    home = [line.partition("=")[2].strip() for line in lines if line.startswith("home")]
    return bool(home) and os.path.isdir(home[0]) and os.path.exists(environment_python(root))


def read_simple_toml(path: str) -> "dict[str, Any]":
    """`key = JSON value`, one a line, and comment lines: the part of TOML that needs no package on Python 3.10."""
    import json

    values: dict[str, Any] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            key, _, text = line.partition("=")
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if value is None or isinstance(value, dict) or not key.strip().isidentifier() or key.strip() in values:
                message = f"{path}:{number}: expected one `key = JSON value`, got {line.strip()!r}"
                raise Failure("profile_invalid", message, EXIT_USAGE)
            values[key.strip()] = value
    return values


# --- Environment of child processes

_LEAKS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
_LEAK_PREFIXES = ("PYTHON", "CONDA_", "_CONDA_", "VIRTUAL_ENV_", "_PYTHON_")


def clean_environment() -> dict[str, str]:
    """What our processes inherit: all but that which bends a Python towards another one's modules or libraries."""
    env = {key: value for key, value in os.environ.items() if key not in _LEAKS and not key.startswith(_LEAK_PREFIXES)}
    env["PYTHONUTF8"] = "1"
    for name in ("SIDECAR_HOME", "SIDECAR_CATALOGUE", "SIDECAR_PROFILES"):
        if env.get(name):
            env[name] = os.path.abspath(expand_user(env[name]))
    return env


def sidecar_environment() -> dict[str, str]:
    return {**clean_environment(), "PYTHONPATH": ROOT}


def become(argv: list[str]) -> int:
    """Replace this process by one of ours; Windows cannot, so there we wait for a child and return its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    env = sidecar_environment()
    os.chdir(ROOT)  # `-m` imports from the current folder first, and the host's is none of ours
    if not WINDOWS:
        os.execve(argv[0], argv, env)
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child as well, which knows how to stop
    return subprocess.call(argv, env=env)


# --- Making an environment


def ensure_environment(name: str, options: "Options", say: Reporter) -> str:
    """Path of the interpreter of the profile's finished environment, which is made or repaired if need be."""
    profile = Profile(name)
    if profile.is_complete() and not options.repair:
        return profile.python
    os.makedirs(os.path.dirname(profile.root), mode=0o700, exist_ok=True)
    lock_fd = os.open(profile.root + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_lock(lock_fd):
            say.note(f"another launcher is making the {name} environment; waiting for it")
            if say.events:
                say.progress("waiting for another launcher", 0, 1)
            end_with_us(lambda: None)
            end_with_host(options, lambda: None)
            while not try_lock(lock_fd):
                time.sleep(0.1)
        installation = Installation(profile, options, say, lock_fd)
        if not profile.is_complete() or (options.repair and not installation.works()):
            installation.make()
    finally:
        os.close(lock_fd)
    return profile.python


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file, which ends with the last process that holds the file open."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


# Settings that would change where the packages go or which they are. Indexes, proxies and certificates stay.
_PIP_LEAKS = ("USER", "TARGET", "PREFIX", "ROOT", "PYTHON", "CONSTRAINT", "REQUIREMENT", "NO_BINARY", "DRY_RUN")
_UV_LEAKS = ("PYTHON", "SYSTEM_PYTHON", "TARGET", "PREFIX", "CONSTRAINT", "OVERRIDE", "NO_BINARY", "EXCLUDE_NEWER")
_INSTALLER_LEAKS = {*("PIP_" + name for name in _PIP_LEAKS), *("UV_" + name for name in _UV_LEAKS)}


class Installation:
    """Makes one environment in place (a venv cannot be moved), under a lock that the caller holds.

    The stamp is written last, after the import probe. Whatever dies before leaves a folder without stamp, which is
    never used and is removed by the next try.
    """

    def __init__(self, profile: Profile, options: "Options", say: Reporter, lock_fd: int) -> None:
        self.profile, self.say, self.lock_fd = profile, say, lock_fd
        self.wheels = os.path.abspath(options.wheels) if options.wheels else None
        self.options = options
        self.base = str(getattr(sys, "_base_executable", None) or sys.executable)
        self.log_path, self.cache = profile.root + ".log", profile.root + ".cache"
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[tuple[str, ...]] = set()
        self.total = 0

    def make(self) -> None:
        import shutil

        description = self.profile.describe()
        self._announce(description)
        uv = shutil.which("uv")
        size_mb = int(description["cpu_size_mb" if self.profile.for_cpu else "size_mb"])
        # uv links its files into place; pip has packages and environment on the disk at once.
        check_free_space(os.path.dirname(self.profile.root), size_mb * (6 if uv else 8) // 5)
        if self.wheels and not os.path.isdir(self.wheels):
            raise Failure("wheels_missing", f"--wheels {self.wheels!r} is no folder", EXIT_USAGE)
        if os.path.lexists(self.profile.root):
            self.say.note(f"repairing the {self.profile.name} environment, which was not finished or lost a part of it")
        end_with_us(self._kill_step)
        end_with_host(self.options, self._kill_step)
        write_durably(self.log_path, "")
        if not (uv and self._try_uv(uv)):
            self._install_with_pip()
        self._probe(description)
        self._finish()

    def works(self) -> bool:
        """Whether the finished environment still has what it was made with."""
        try:
            self._probe(self.profile.describe())
        except Failure as failure:
            if failure.code != "environment_broken":
                raise
            self.say.note(failure.message)
            return False
        self._tidy()
        return True

    def _probe(self, description: "dict[str, Any]") -> None:
        self._run([self.profile.python, "-I", "-c", _PROBE, *description["probe"]], self._environment(), "probe")

    def _tidy(self) -> None:
        import shutil

        os.unlink(self.log_path)
        shutil.rmtree(self.cache, ignore_errors=True)

    def _announce(self, description: "dict[str, Any]") -> None:
        """What people should know before. Raises Failure where the profile cannot work."""
        platforms = description.get("platforms", [sys.platform])
        if sys.platform not in platforms:
            message = f"the profile {self.profile.name} is for {', '.join(platforms)} only, this is {sys.platform}"
            raise Failure("profile_unsupported", message, EXIT_USAGE)
        if description.get("needs_device") == "cuda" and not wants_cuda():
            self.say.note(f"no NVIDIA GPU was found: models of the profile {self.profile.name} will run on the CPU")
        if self.profile.for_cpu:
            self.say.note("taking the builds for the CPU (SIDECAR_DEVICE=cuda: those for an NVIDIA GPU)")
        if description.get("notice"):
            self.say.notice(description["notice"])

    def _try_uv(self, uv: str) -> bool:
        try:
            self._install_with_uv(uv)
        except Failure as failure:
            hopeless = ("disk_full", "hash_mismatch", "package_missing" if self.wheels else "")
            if failure.code in hopeless:
                raise
            self.say.note(f"uv could not do it, going on with pip ({failure.message})")
            return False
        return True

    def _install_with_uv(self, uv: str) -> None:
        self._clear()
        env = with_pip_settings({"UV_SYSTEM_CERTS": "1", **self._environment()})
        venv = ["venv", "--quiet", "--no-project", "--no-python-downloads", "--python", self.base, self.profile.root]
        self._run([uv, *venv], env, "uv")
        # Hashes are pinned, so any index that has the file will do.
        best_match = ["--index-strategy", "unsafe-best-match"]
        install = ["pip", "install", "--python", self.profile.python, "--compile-bytecode", *best_match]
        self._run([uv, *install, *self._what_to_install()], env, "uv")

    def _install_with_pip(self) -> None:
        require_venv_module()
        self._clear()
        env = self._environment()
        self._run([self.base, "-I", "-m", "venv", self.profile.root], env, "venv")
        install = ["install", "--no-input", "--no-user", "--disable-pip-version-check", "--progress-bar", "off"]
        self._run([self.profile.python, "-I", "-m", "pip", *install, *self._what_to_install()], env, "pip")

    def _what_to_install(self) -> list[str]:
        complete = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r"]
        if self.wheels:
            return ["--no-index", "--find-links", self.wheels, *complete, self._lock_without_addresses()]
        return [*complete, self.profile.lock_path]

    def _lock_without_addresses(self) -> str:
        """For `--wheels`: path of the lock in which wheels with an address of their own are named by version."""
        import re
        from urllib.parse import unquote

        if " @ " not in self.profile.lock_text:
            return self.profile.lock_path
        pattern = r"(?m)^([\w.-]+) @ \S+/[\w.]+-([\w.%]+)-\S+\.whl"
        text = re.sub(pattern, lambda wheel: f"{wheel[1]}=={unquote(wheel[2])}", self.profile.lock_text)
        path = os.path.join(self.cache, "offline.lock")
        os.makedirs(self.cache, exist_ok=True)
        write_durably(path, text)
        return path

    def _environment(self) -> dict[str, str]:
        env = {key: value for key, value in clean_environment().items() if key not in _INSTALLER_LEAKS}
        if self.wheels:
            env = {key: value for key, value in env.items() if key not in ("PIP_FIND_LINKS", "UV_FIND_LINKS")}
        if self.profile.name not in ("base", "dev"):
            # What `remove` is to give back must not stay behind in the tool's own cache: only an unfinished one
            # keeps it, to go on from there. And /tmp may be too small for some packages.
            os.makedirs(self.cache, exist_ok=True)
            env = {"UV_CACHE_DIR": self.cache, "PIP_NO_CACHE_DIR": "1", "TMPDIR": self.cache, **env}
        return {**env, "PYTHONUNBUFFERED": "1"}

    def _clear(self) -> None:
        """Remove what is there, the stamp first: a removal that is cut short must not look finished."""
        import shutil

        if os.path.lexists(self.profile.stamp):
            os.unlink(self.profile.stamp)
        if os.path.lexists(self.profile.root):
            shutil.rmtree(self.profile.root)
        self.seen.clear()
        self.total = sum(1 for line in self.profile.lock_text.splitlines() if "==" in line and line[0].isalnum())
        self.say.progress("environment", 0, self.total)

    def _run(self, argv: list[str], env: dict[str, str], tool: str) -> None:
        """Run one step, its output into log and progress. Raises Failure that names the cause."""
        import re
        import subprocess

        # The step holds the lock too: if we are killed, nobody starts over while it still writes.
        inherit: dict[str, Any] = {} if WINDOWS else {"pass_fds": [self.lock_fd], "start_new_session": True}
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=os.path.dirname(self.profile.root),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **inherit,
        )
        if sys.platform != "win32" and self.options.command == "install" and self.options.watch_pid:
            # Somebody's app goes on beside the step. Not beside us: we must notice that app's end at once.
            os.setpriority(os.PRIO_PGRP, self.process.pid, os.nice(0) + 10)
        lines: list[str] = []
        try:
            with open(self.log_path, "ab") as log:
                for raw in self.process.stdout or ():
                    raw = re.sub(rb"://[^/\s'\"]+@", b"://***@", raw)  # who logs in to a mirror or proxy
                    log.write(raw)
                    lines.append(raw.decode("utf-8", "replace").strip())
                    self._count(lines[-1])
            exit_code = self.process.wait()
        finally:
            self._kill_step()
            self.process.wait()
        if exit_code != 0:
            failure = explain_step(tool, exit_code, lines, self.wheels, self.log_path)
            if self.profile.for_cpu and failure.code in ("no_network", "package_missing", "install_failed"):
                failure.message += "; SIDECAR_DEVICE=cuda takes the larger builds, from the usual index"
            raise failure

    def _count(self, line: str) -> None:
        import re

        words = line.split()
        package = re.match(r"(?:Collecting|Downloaded|\+) ([\w.-]+)|Processing .*[/\\]([\w.]+)-[^/\\]*\.whl", line)
        if line.startswith("Ignoring "):  # pip, for entries whose markers do not hold here
            self.total -= 1
        elif line.startswith("Resolved "):  # uv
            self.total = int(words[1])
        elif line.startswith("Installing collected"):  # pip, after the last download
            self.say.progress("unpacking", self.total, self.total)
        elif package and package.group(1, 2) not in self.seen:
            self.seen.add(package.group(1, 2))
            self.say.progress(package[1] or package[2], min(len(self.seen), self.total), self.total)

    def _kill_step(self) -> None:
        """Kill the step with its children if it still runs. Signal handlers call it: no lock, no waiting."""
        if self.process is None or self.process.returncode is not None:
            return
        if sys.platform == "win32":
            self.process.kill()
        else:
            import contextlib
            import signal

            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _finish(self) -> None:
        import json

        stamp = {
            "profile": self.profile.name,
            "lock_sha256": sha256_of(self.profile.lock_text),
            "python": sys.version.split()[0],
            "base": self.base,
            "finished_at": time.time(),
        }
        write_durably(self.profile.stamp, json.dumps(stamp, indent=1))
        self._tidy()
        self.say.progress("finished", self.total, self.total)
        self.say.note(f"the {self.profile.name} environment is ready")


_PROBE = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"


def write_durably(path: str, text: str) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def check_free_space(folder: str, size_mb: int) -> None:
    import shutil

    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < size_mb:
        raise Failure("disk_full", f"{_NEEDS_SPACE} ({size_mb} MB are needed in {folder}, {free_mb} MB free)")


# Who configured a mirror or a certificate for pip means it for uv too, which knows them by other names.
_PIP_TO_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}


def with_pip_settings(env: dict[str, str]) -> dict[str, str]:
    """Add pip's network settings (variables, else files) as uv's, unless uv has an index of its own."""
    import configparser
    import contextlib

    if any(name.startswith(("UV_INDEX", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE")) for name in env):
        return env
    config_home = env.get("XDG_CONFIG_HOME") or "~/.config"
    folders = ("/etc", "~/.pip", "~/Library/Application Support/pip", f"{config_home}/pip")
    names = [f"{folder}/pip.conf" for folder in folders]
    names += [os.path.join(env.get("APPDATA", ""), "pip", "pip.ini"), env.get("PIP_CONFIG_FILE", "")]
    files = configparser.RawConfigParser(strict=False)
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):  # pip itself will complain better
        files.read([os.path.expanduser(name) for name in names if name], encoding="utf-8")
    for key, (uv_name, separator) in _PIP_TO_UV.items():
        value = env.get("PIP_" + key.upper().replace("-", "_")) or files.get("global", key, fallback="")
        if value:
            env.setdefault(uv_name, separator.join(value.split()))
    return env


# What pip and uv say, and what it means. Network comes before missing: pip goes on to "No matching distribution".
_NEEDS_SPACE = "the disk is full: free some space or set SIDECAR_HOME to a folder on another disk"
_CAUSES = (
    ("disk_full", r"no space left on device|(os error|errno) 28\b|quota exceeded", _NEEDS_SPACE),
    (
        "hash_mismatch",
        r"do not match the hashes|hash mismatch|hashes do not match",
        "refused a package that is not the one in the lock (SHA-256 differs): check your mirror or --wheels folder",
    ),
    (
        "tls_untrusted",
        r"certificate_verify_failed|invalid peer certificate|unknownissuer",
        "the network's certificate is not trusted: set SSL_CERT_FILE and PIP_CERT to your organisation's file",
    ),
    (
        "no_network",
        r"name resolution|(name or service|nodename nor servname) not|getaddrinfo failed|dns error|new ?connection"
        r"|connection refused|network is unreachable|error sending request|timed out|timeouterror|proxyerror",
        "no network to get packages from: connect and run again, or install offline with --wheels DIR",
    ),
    ("home_not_writable", r"read-only file system|permission denied", "set SIDECAR_HOME to a folder you can write to"),
    ("venv_missing", r"ensurepip is not available|no module named '?(ensurepip|venv)", ""),
    ("package_missing", r"no matching distribution|could not find a version|no solution found|no wheels", ""),
)


def explain_step(tool: str, exit_code: int, lines: list[str], wheels: str | None, log_path: str) -> Failure:
    """The Failure for a step that ended with `exit_code` after printing `lines`."""
    import re

    text = "\n".join(lines).lower()
    code, cure = next(((code, cure) for code, signs, cure in _CAUSES if re.search(signs, text)), ("", ""))
    errors = [line for line in lines if line.lower().startswith("error")] or [line for line in lines[-1:] if line]
    said = (errors or [f"exit code {exit_code}"])[0][:300]
    if tool == "probe":
        message = f"the environment does not work: {lines[-1] if lines else said}; run again, report it if it stays"
        return Failure("environment_broken", message)
    if code == "venv_missing":
        return venv_missing()
    if code == "package_missing":
        cure = "the package index has no build of a package for this platform and Python: try another from 3.10 to 3.13"
        cure = f"a package of the lock is not in {wheels}" if wheels else cure
    if code:
        return Failure(code, f"{cure} ({said})")
    return Failure("install_failed", f"{tool} failed: {said} (everything it said: {log_path})")


def require_venv_module() -> None:
    from importlib.util import find_spec

    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise venv_missing()


def venv_missing() -> Failure:
    try:
        release = read_text("/etc/os-release")
    except OSError:
        release = ""
    return Failure("venv_missing", f"this Python has no venv module: {venv_cure(release)}, then run again")


def venv_cure(os_release: str) -> str:
    """What to install where, from the text of /etc/os-release (ID and ID_LIKE)."""
    fields = dict(line.partition("=")[::2] for line in os_release.splitlines())
    family = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
    apt = f"sudo apt install python3-venv (or python3.{sys.version_info[1]}-venv)"
    cures = {"debian": apt, "ubuntu": apt, "arch": "sudo pacman -S python", "fedora": "sudo dnf install python3"}
    found = [cures[name] for name in family if name in cures]
    return f"run {found[0]}" if found else "install a complete Python 3.10 to 3.13"


def explain_os_error(error: OSError) -> Failure:
    import errno

    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return Failure("disk_full", f"{_NEEDS_SPACE} ({what})")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return Failure("home_not_writable", f"cannot write to {what}; set SIDECAR_HOME to a folder you can write to")
    return Failure("io_error", what)


# --- Ends of the host and of ourselves during an installation (afterwards they are the supervisor's business)


def end_with_us(end: "Callable[[], None]") -> None:
    """On SIGTERM and SIGHUP call `end` and exit with 128 + n, rather than leave the step behind."""
    import signal

    def stop(number: int, _frame: object) -> None:
        end()
        os._exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


def end_with_host(options: "Options", end: "Callable[[], None]") -> None:
    """Where a supervisor would end with its host (stdin pipe closed, `--watch-pid` gone), end the installation too."""
    import stat
    import threading

    try:
        mode = os.fstat(0).st_mode
    except OSError:
        mode = 0
    stdin = options.command == "run" and not options.detach and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))
    pid = None if options.detach else options.watch_pid

    def watch() -> None:
        while not ((stdin and stdin_is_closed()) or (pid and not is_alive(pid))):
            time.sleep(0.2)
        end()
        os._exit(1)

    if stdin or pid:
        threading.Thread(target=watch, daemon=True).start()


def stdin_is_closed() -> bool:
    """Whether the other end is gone, without reading: what the host wrote is for the supervisor."""
    import select

    if sys.platform == "win32":
        return False
    poll = select.poll()
    poll.register(0, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill(pid, 0) would send it a Ctrl-C
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x00100000, False, pid)  # SYNCHRONIZE
        alive = bool(handle) and kernel.WaitForSingleObject(handle, 0) != 0
        kernel.CloseHandle(handle)
        return alive
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        # One that nobody has reaped is dead, too: where its parent died with it, that may take seconds.
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


# --- The running instance


def live_handshake() -> "dict[str, Any] | None":
    """The handshake of an instance that is ready and answers as itself. A file alone may be a dead one's."""
    import contextlib

    handshake = read_handshake()
    if handshake.get("phase") not in ("ready", "degraded") or not is_alive(handshake["supervisor"]["pid"]):
        return None
    with contextlib.suppress(OSError, ValueError):
        status, health = request(handshake, "GET", "/health", timeout_s=5)
        if status == 200 and health.get("instance_id") == handshake["instance_id"]:
            return handshake
    return None


def read_handshake() -> "dict[str, Any]":
    """What the file says, or nothing where it is no handshake."""
    import contextlib
    import json

    types = {"phase": str, "instance_id": str, "host": str, "port": int}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        handshake: dict[str, Any] = json.loads(read_text(handshake_path()))
        known = all(isinstance(handshake[name], kind) for name, kind in types.items())
        return handshake if known and isinstance(handshake["supervisor"]["pid"], int) else {}
    return {}


def is_locked_by_instance() -> bool:
    """Whether there is a supervisor, answering or not."""
    try:
        fd = os.open(handshake_path()[: -len(".json")] + ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def request(
    handshake: "dict[str, Any]", method: str, path: str, body: object = None, timeout_s: float = 60
) -> "tuple[int, dict[str, Any]]":
    """Status and JSON object. Raises OSError, or ValueError for what is no HTTP or JSON. Never through a proxy."""
    import http.client
    import json

    connection = http.client.HTTPConnection(handshake["host"], handshake["port"], timeout=timeout_s)
    headers = {"Content-Type": "application/json"}
    if handshake.get("token"):
        headers["Authorization"] = f"Bearer {handshake['token']}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except http.client.HTTPException as error:
        raise ValueError(str(error)) from error
    finally:
        connection.close()
    return response.status, answer if isinstance(answer, dict) else {}


def ask(
    handshake: "dict[str, Any]", method: str, path: str, body: object = None, timeout_s: float = 60
) -> "dict[str, Any]":
    """The JSON object that the running instance answers. Raises Failure for every other answer, OSError for none."""
    try:
        status, answer = request(handshake, method, path, body, timeout_s)
    except ValueError as error:
        raise Failure("no_answer", f"the sidecar's answer is no JSON: {error}") from error
    if status != 200:
        detail = answer.get("detail") or answer.get("title")
        raise Failure(answer.get("code") or "no_answer", f"the sidecar answered {status}: {detail}")
    return answer


class Starting:
    """A supervisor that we started as a child and that becomes ready, attaches to a running instance, or fails."""

    def __init__(self, python: str, flags: list[str], detach: bool) -> None:
        os.makedirs(log_dir(), mode=0o700, exist_ok=True)
        check_free_space(log_dir(), 1)  # without a handshake it would run, and nobody could find it
        self.output_path = os.path.join(log_dir(), "launcher.out")
        self.argv, self.detach = [python, "-m", "sidecar", "supervise", *flags], detach
        self._spawn()

    def _spawn(self) -> None:
        import subprocess

        options: dict[str, Any] = {}
        if self.detach and sys.platform == "win32":
            options["creationflags"] = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        elif self.detach:
            options["start_new_session"] = True
        self.started_at = time.time()
        with open(self.output_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            self.said_before = output.tell()
            self.process = subprocess.Popen(
                self.argv,
                env=sidecar_environment(),
                cwd=ROOT,
                stdin=subprocess.DEVNULL if self.detach else subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # one that attaches prints the handshake, token included
                stderr=output,
                **options,
            )

    def wait_ready(self) -> "dict[str, Any]":
        """The handshake of the instance that answers, ours or the one that ours attached to. Raises Failure."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            handshake = live_handshake()
            if handshake:
                return handshake
            exit_code = self.process.poll()
            latest = read_handshake()
            failed = latest.get("phase") == "failed" and latest.get("updated_at", 0) >= self.started_at
            if failed or exit_code:
                raise Failure("start_failed", self._evidence(latest if failed else {}))
            if exit_code == 0 and not is_locked_by_instance():  # the one that it attached to has ended
                self._spawn()
            time.sleep(0.05)
        raise Failure("start_timeout", f"the sidecar was not ready after {READY_TIMEOUT_S:.0f} s; see {log_dir()}")

    def _evidence(self, handshake: "dict[str, Any]") -> str:
        last_exit = handshake.get("last_exit") or {"code": self.process.poll()}
        with open(self.output_path, "rb") as file:
            file.seek(self.said_before)
            tail = last_exit.get("stderr_tail") or file.read()[-4096:].decode("utf-8", "replace")
        end = f"signal {last_exit['signal']}" if last_exit.get("signal") else f"exit code {last_exit['code']}"
        return f"the sidecar did not start ({end}; logs in {log_dir()})\n{tail.strip()}"

    def stop(self) -> None:
        """Close the stdin pipe, which is the order to end, and wait for the end."""
        import subprocess

        if self.process.stdin:
            self.process.stdin.close()
        else:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# --- Subcommands


def run(options: "Options", say: Reporter) -> int:
    python = own_python(options, say)
    flags = supervise_flags(options)
    if options.detach:
        return detach(python, flags, say)
    flags += ["--events"] if options.events else []
    return become([python, "-m", "sidecar", "supervise", *flags])


def own_python(options: "Options", say: Reporter) -> str:
    """Interpreter of the environment that the sidecar itself runs in."""
    if options.profile not in ("base", "dev"):
        name = Profile(options.profile).name  # one that nobody knows is told so
        message = (
            f"the profile {name} is for models, which use it by themselves once it is here (install --with {name})"
        )
        raise Failure("usage", message, EXIT_USAGE)
    return ensure_environment(options.profile, options, say)


def supervise_flags(options: "Options") -> list[str]:
    given = {"--port": options.port, "--auth": options.auth or None, "--watch-pid": options.watch_pid}
    flags = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    return [*flags, "--detach"] if options.detach else flags


def detach(python: str, flags: list[str], say: Reporter) -> int:
    import json

    starting = Starting(python, flags, detach=True)
    try:
        handshake = starting.wait_ready()
    except Failure:
        starting.stop()
        raise
    if say.events:
        print(json.dumps(handshake))
    else:
        pid = handshake["supervisor"]["pid"]
        print(f"{handshake['phase']}  {handshake['base_url']}  pid {pid}\nhandshake  {handshake_path()}")
    return 0


def install(options: "Options", say: Reporter) -> int:
    for name in dict.fromkeys([options.profile, *options.profiles]):
        python = ensure_environment(name, options, say)
        if not options.events:
            print(f"{name}  {python}")
    return 0


def profiles(options: "Options", say: Reporter) -> int:
    """The profiles that models may need, and which of them are here."""
    import json

    rows = [(profile, profile.describe()) for profile in map(Profile, profile_names())]
    rows = [(profile, description) for profile, description in rows if not description.get("internal")]
    if options.as_json:
        keys = ("description", "licence", "notice", "size_mb", "needs_device")
        told = [{"name": one.name, "state": one.state(), **{key: d.get(key) for key in keys}} for one, d in rows]
        print(json.dumps(told))
        return 0
    for profile, description in rows:
        size_mb = description["cpu_size_mb" if profile.for_cpu else "size_mb"]
        print(f"{profile.name:<8}{profile.state():<12}{size_mb / 1000:5.1f} GB  {description['description']}")
        print(f"{'':28}licence: {description.get('licence', '')}")
    return 0


def remove(options: "Options", say: Reporter) -> int:
    """Delete the profile's environments, of earlier locks too, and say how much that gives back to the disk."""
    import json

    name = options.text
    roots = environments(name)
    if not roots:
        Profile(name)  # raises Failure for a name that nobody knows
    handshake = None if options.unloaded else live_handshake()
    if not (handshake or options.unloaded) and is_locked_by_instance():
        message = "the sidecar runs but does not answer now: wait until it is ready, or stop it first"
        raise Failure("instance_busy", f"{message} (python3 launcher.py stop)")
    if handshake and name != "base":  # it unloads the models first
        freed = ask(handshake, "DELETE", f"/profiles/{name}", timeout_s=600)["freed_bytes"]
    else:
        if name == "base":
            roots = spare_what_we_run_in(roots, handshake)
        freed = sum(remove_environment(root) for root in roots)
    if options.as_json:
        print(json.dumps({"profile": name, "freed_bytes": freed}))
    else:
        print(f"{name}  {freed / 1e6:.0f} MB freed")
    return 0


def spare_what_we_run_in(roots: "list[str]", handshake: "dict[str, Any] | None") -> "list[str]":
    """Those of base that nothing needs any more. Raises Failure if there is none, or if one may be in use."""
    if handshake:
        raise Failure("profile_needed", "the sidecar runs in base: stop it first (python3 launcher.py stop)")
    root = Profile("base").root
    if roots in ([], [root]):
        message = f"base is what everything runs in; to remove all of the sidecar, delete {data_dir()}"
        raise Failure("profile_needed", message)
    return [each for each in roots if each != root]


def remove_environment(root: str) -> int:
    """Delete one with what an installation left beside it; returns the bytes freed. Raises Failure while it is made."""
    import contextlib
    import shutil

    lock_fd = os.open(root + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_lock(lock_fd):
            raise Failure("profile_busy", f"{root} is being made right now: wait for that, or end it first")
        freed = disk_bytes(root, root + ".cache")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(root, "complete.json"))  # first: a removal cut short must not look finished
        shutil.rmtree(root + ".cache", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + ".log")
        shutil.rmtree(root)
    finally:
        os.close(lock_fd)
    return freed


def disk_bytes(*folders: str) -> int:
    """What deleting them would give back: a file that is linked from elsewhere, as from a cache, gives nothing."""
    left: dict[tuple[int, int], list[int]] = {}
    for path, _, files in (step for folder in folders for step in os.walk(folder)):
        for file in files:
            status = os.lstat(os.path.join(path, file))
            links = left.setdefault((status.st_dev, status.st_ino), [status.st_nlink, status.st_size])
            links[0] -= 1
    return sum(size for links, size in left.values() if links == 0)


def test(options: "Options", say: Reporter) -> int:
    python = ensure_environment("dev", options, say)
    return become([python, "-m", "pytest", *options.passed_on])


def pass_on(options: "Options", say: Reporter) -> int:
    """doctor, models: commands of the sidecar's own, which get their arguments unread."""
    python = own_python(options, say)
    return become([python, "-m", "sidecar", options.command, *options.passed_on])


def ask_instance(options: "Options", say: Reporter) -> int:
    """status, stop, logs: questions that the installed sidecar answers itself."""
    python = any_finished_environment(options.profile)
    if python is None:
        say.note("nothing is installed, so nothing is running (start it with: python3 launcher.py)")
        return {"status": EXIT_NOT_RUNNING, "stop": 0}.get(options.command, 1)
    arguments = ["-f"] if options.follow else []
    arguments += ["--json"] if options.as_json else []
    arguments += [] if options.lines is None else ["-n", str(options.lines)]
    return become([python, "-m", "sidecar", options.command, *arguments])


def any_finished_environment(name: str) -> str | None:
    """The profile's environment, else one of an earlier lock: after an update the old instance may still run."""
    profile = Profile(name)
    if profile.is_complete():
        return profile.python
    for root in environments(name):
        if is_finished(root):
            return environment_python(root)
    return None


def try_text(options: "Options", say: Reporter) -> int:
    """One answer for people: from the running instance, else from one that lives as long as this takes."""
    python = own_python(options, say)
    for last in (False, False, True):
        try:
            print_emotions(detect_emotion(python, options.text))
            break
        except (OSError, Failure) as error:  # the instance was another one's `try`, and ends with that
            if last or getattr(error, "code", "shutting_down") != "shutting_down":
                raise
    return 0


def detect_emotion(python: str, text: str) -> "dict[str, Any]":
    handshake = live_handshake()
    starting = None if handshake else Starting(python, [], detach=False)
    try:
        handshake = handshake or (starting.wait_ready() if starting else {})
        return ask(handshake, "POST", "/emotion/detect", {"text": text})
    finally:
        if starting:
            starting.stop()


def print_emotions(answer: "dict[str, Any]") -> None:
    source = f"({answer['model']}, {answer['processing_time_ms']:.1f} ms)"
    print(f"{answer['emotion']}  {answer['confidence']:.2f}   {source}")
    others = [item for item in answer["all_emotions"] if item["label"] != answer["emotion"]]
    small, normal = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() and not WINDOWS else ("", "")
    if others:
        print(small + "  ".join(f"{item['label']} {item['score']:.2f}" for item in others) + normal)


# --- Command line (argparse and what it imports would double the time to a running supervisor)

USAGE = """\
usage: python3 launcher.py [COMMAND] [OPTION]...

  run              make the environment if need be and start the sidecar (the default)
    --detach       start it in the background and return when it is ready
    --port N       port to listen on (default: a free one)
    --auth on|off  off: no token, for legacy local clients
    --watch-pid N  end when the process N ends
    --events       NDJSON on stdout, in the shape of the handshake
  install          make the environment without starting anything (--events, --watch-pid as above)
    --with NAME    make this profile's environment too; may be repeated
    --repair       try out what is there already, and make anew what has lost a part
  profiles [--json]  list the profiles, which of them are here and how large they are
  remove NAME      delete a profile's environments; a running sidecar unloads its models first
  test [ARG]...    run pytest with ARGs, or the whole suite, in an environment of its own
  status [--json]  say whether it runs (exit code 3: no); --json prints the handshake
  stop             stop it
  logs [-f] [-n N] show its log; -f goes on with new lines, -n N starts with the last N
  doctor [ARG]...  examine the sidecar (starting one if none runs), and say what is wrong and its cure;
                   --test NAME for one of its tests, --json for programs
  models ARG...    list, pull, rm, ... the models (`models --help`)
  try TEXT         detect the emotion of TEXT and print it

  --wheels DIR     run, install, test, doctor, models, try: install offline from the wheels in DIR
  --profile NAME   install: another environment than base; all but test: base or dev
"""
COMMANDS = {
    "run": run,
    "install": install,
    "profiles": profiles,
    "remove": remove,
    "test": test,
    "status": ask_instance,
    "stop": ask_instance,
    "logs": ask_instance,
    "doctor": pass_on,
    "models": pass_on,
    "try": try_text,
}


class Options:
    """The command line with its defaults."""

    command = "run"
    profile = "base"
    wheels = auth = ""
    port = watch_pid = lines = None  # type: int | None
    detach = events = follow = as_json = repair = unloaded = False
    text = ""

    def __init__(self) -> None:
        self.profiles: list[str] = []
        self.passed_on: list[str] = []


# Option -> attribute, what its value is ("" for a switch), the commands that know it.
_OPTIONS = {
    "--detach": ("detach", "", "run"),
    "--port": ("port", "a number up to 65535", "run"),
    "--auth": ("auth", "on or off", "run"),
    "--watch-pid": ("watch_pid", "a process id", "run install"),
    "--events": ("events", "", "run install remove"),
    "--with": ("profiles", "a profile", "install"),
    "--repair": ("repair", "", "install"),
    "--json": ("as_json", "", "status profiles remove"),
    "--unloaded": ("unloaded", "", "remove"),  # for the sidecar itself, which has unloaded the models
    "-f": ("follow", "", "logs"),
    "-n": ("lines", "a number", "logs"),
    "--wheels": ("wheels", "a folder", "run install test doctor models try"),
    "--profile": ("profile", "a profile", "run install status stop logs doctor models try"),
}


_ARGUMENTS = {"try": "TEXT", "remove": "NAME"}


def parse(argv: list[str]) -> Options:
    """Command first, `run` without one. What is for another program is passed on. Failure: code 78."""
    options, words = Options(), list(argv)
    if words and not words[0].startswith("-"):
        options.command = words.pop(0)
    if options.command not in COMMANDS:
        message = f"unknown command {options.command!r}; there are: {', '.join(COMMANDS)}"
        raise Failure("usage", message, EXIT_USAGE)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        attribute, kind, commands = _OPTIONS.get(name, ("", "", ""))
        if options.command not in commands.split():
            _take_argument(options, word)
        elif not kind and not equals:
            setattr(options, attribute, True)
        elif kind and (equals or words):
            _take_value(options, name, attribute, kind, value if equals else words.pop(0))
        else:
            raise Failure("usage", f"{name} needs {kind or 'no value'}", EXIT_USAGE)
    if options.command in _ARGUMENTS and not options.text:
        raise Failure("usage", f"{options.command} needs a {_ARGUMENTS[options.command]}", EXIT_USAGE)
    return options


def _take_argument(options: Options, word: str) -> None:
    if options.command in ("test", "doctor", "models"):
        options.passed_on.append(word)
    elif options.command in _ARGUMENTS and not options.text:
        options.text = word
    else:
        raise Failure("usage", f"{options.command} does not know {word!r} (see --help)", EXIT_USAGE)


def _take_value(options: Options, name: str, attribute: str, kind: str, value: str) -> None:
    numbers = {"port": 65535, "watch_pid": 2**31 - 1, "lines": 10**9}
    if attribute in numbers:
        if not (value.isdecimal() and int(value) <= numbers[attribute]):
            raise Failure("usage", f"{name} needs {kind}, not {value!r}", EXIT_USAGE)
        setattr(options, attribute, int(value))
    elif attribute == "auth" and value not in ("on", "off"):
        raise Failure("usage", f"{name} needs {kind}, not {value!r}", EXIT_USAGE)
    elif attribute == "profiles":
        options.profiles.append(value)
    else:
        setattr(options, attribute, value)


def claim_standard_descriptors() -> None:
    """A host may start us with 0, 1 or 2 closed; the next file we open must not become one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def has_its_own_help(command: str) -> bool:
    """doctor and models do, but nothing is installed only to be told it."""
    if command not in ("doctor", "models"):
        return command == "test"
    try:
        return Profile("base").is_complete()
    except Failure:
        return False


def main(argv: list[str]) -> int:
    claim_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if {"-h", "--help"} & set(argv) and not has_its_own_help(argv[0]):
        print(USAGE, end="")
        return 0
    say = Reporter("--events" in argv)
    try:
        options = parse(argv)
        return COMMANDS[options.command](options, say)
    except Failure as failure:
        error = failure
    except BrokenPipeError:
        os._exit(1)  # the host that read our events is gone
    except OSError as os_error:
        error = explain_os_error(os_error)
    except KeyboardInterrupt:
        return 130
    say.failed(error)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
