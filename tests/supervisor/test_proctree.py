"""Both process trees: one interface; the POSIX one with real processes, the Windows one with a recording kernel32."""

import base64
import ctypes
import inspect
import os
import signal
import socket
import subprocess
import types
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from sidecar.supervisor import proctree, proctree_posix, proctree_windows
from tests.supervisor.harness import is_running, run_python, until

GROUP = """
import signal, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE)
grandchild.stdout.readline()
print(grandchild.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def public(module: types.ModuleType) -> dict[str, Any]:
    """What `proctree` takes from either module, with signatures."""
    found: dict[str, Any] = {}
    for name in proctree.__all__:
        thing = getattr(module, name)
        found[name] = inspect.signature(thing) if inspect.isfunction(thing) else type(thing)
    for name, method in inspect.getmembers(module.Tree, inspect.isfunction):
        if not name.startswith("_"):
            found[f"Tree.{name}"] = inspect.signature(method)
    return found


def test_one_interface() -> None:
    assert public(proctree_posix) == public(proctree_windows)


# POSIX


def spawn_group(listener: socket.socket) -> "tuple[proctree_posix.Tree, subprocess.Popen[bytes], int]":
    tree = proctree_posix.Tree(listener)
    leader = run_python(GROUP, stdout=subprocess.PIPE, **tree.spawn_options())
    assert tree.adopt(leader) is None
    assert leader.stdout is not None
    grandchild = int(leader.stdout.readline())
    leader.stdout.close()
    return tree, leader, grandchild


def test_terminate_spares_who_ignores_it_and_kill_spares_nobody(listener: socket.socket) -> None:
    tree, leader, grandchild = spawn_group(listener)
    os.killpg(leader.pid, signal.SIGSTOP)  # so that SIGTERM stays pending and the leader alive
    # A signal is sent before it is taken: until then SIGTERM, of the lower number, would be taken first.
    until(lambda: psutil.Process(leader.pid).status() == psutil.STATUS_STOPPED, "it stands still")
    tree.terminate()
    assert is_running(leader.pid) and is_running(grandchild)
    tree.kill()
    assert tree.wait() == -signal.SIGKILL
    until(lambda: not is_running(grandchild))


def test_the_end_of_the_leader_takes_the_rest_along(listener: socket.socket) -> None:
    tree, leader, grandchild = spawn_group(listener)
    os.kill(leader.pid, signal.SIGTERM)
    assert tree.wait() == -signal.SIGTERM
    until(lambda: not is_running(grandchild))
    tree.terminate()  # nothing is left; the number may belong to somebody else by now
    tree.kill()


def test_the_child_inherits_the_listening_socket(listener: socket.socket) -> None:
    tree = proctree_posix.Tree(listener)
    source = (
        "import os, socket; listener = socket.socket(fileno=int(os.environ['SIDECAR_LAUNCH_SOCKET_FD']));"
        "listener.accept()[0].send(b'hi')"
    )
    child = run_python(source, env={**os.environ, **tree.environment()}, **tree.spawn_options())
    tree.adopt(child)
    with socket.create_connection(listener.getsockname()) as client:
        assert client.recv(2) == b"hi"
    assert tree.wait() == 0


@pytest.mark.parametrize(
    ("returncode", "evidence"),
    [(0, (0, None)), (78, (78, None)), (-9, (None, "SIGKILL")), (-11, (None, "SIGSEGV")), (-63, (None, "SIG63"))],
)
def test_posix_evidence(returncode: int, evidence: tuple[int | None, str | None]) -> None:
    assert proctree_posix.exit_evidence(returncode) == evidence


def test_private_means_no_bit_for_others(tmp_path: Any) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    assert proctree_posix.holds_private(fd)
    path.chmod(0o640)
    assert not proctree_posix.holds_private(fd)
    os.close(fd)


# Windows


class RecordingKernel32:
    """Answers like kernel32.dll and remembers what it was asked."""

    def __init__(self, **answers: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answers = {"CreateJobObjectW": 11, "OpenProcess": 22, **answers}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == "SetInformationJobObject":
                limits = ctypes.cast(arguments[2], ctypes.POINTER(proctree_windows.ExtendedLimits)).contents
                arguments = (*arguments[:2], limits.BasicLimitInformation.LimitFlags, arguments[3])
            self.calls.append((name, *arguments))
            return self._answers.get(name, 1)

        return call


class FakeProcess:
    pid = 4242
    killed = False

    def wait(self) -> int:
        return 3

    def kill(self) -> None:
        self.killed = True


class FakeListener:
    def share(self, pid: int) -> bytes:
        return b"WSAPROTOCOL_INFO for %d" % pid


def windows_tree(kernel32: RecordingKernel32) -> proctree_windows.Tree:
    return proctree_windows.Tree(FakeListener(), kernel32)  # type: ignore[arg-type]


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="64-bit layout")
def test_windows_job_dies_with_its_handle_and_holds_the_server() -> None:
    kernel32 = RecordingKernel32()
    tree = windows_tree(kernel32)
    greeting = tree.adopt(FakeProcess())  # type: ignore[arg-type]
    assert kernel32.calls == [
        ("CreateJobObjectW", None, None),
        ("SetInformationJobObject", 11, 9, 0x2000, 144),  # sizeof(JOBOBJECT_EXTENDED_LIMIT_INFORMATION) on Win64
        ("OpenProcess", 0x0101, False, 4242),
        ("AssignProcessToJobObject", 11, 22),
        ("CloseHandle", 22),
    ]
    assert greeting is not None and greeting["op"] == "socket"
    assert base64.b64decode(greeting["share"]) == b"WSAPROTOCOL_INFO for 4242"
    assert tree.spawn_options() == {"creationflags": 0x08000200}
    assert tree.environment() == {}


def test_windows_kill_and_end() -> None:
    kernel32 = RecordingKernel32()
    tree = windows_tree(kernel32)
    tree.adopt(FakeProcess())  # type: ignore[arg-type]
    kernel32.calls.clear()
    tree.terminate()
    tree.kill()
    assert kernel32.calls == [("TerminateJobObject", 11, 1)] * 2
    kernel32.calls.clear()
    assert tree.wait() == 3
    assert kernel32.calls == [("TerminateJobObject", 11, 1), ("CloseHandle", 11)], "what the server left ends too"
    tree.kill()
    assert len(kernel32.calls) == 2, "the handle is closed"


def test_windows_never_runs_a_server_outside_a_job() -> None:
    process = FakeProcess()
    tree = windows_tree(RecordingKernel32(AssignProcessToJobObject=0))
    with pytest.raises(OSError):
        tree.adopt(process)  # type: ignore[arg-type]
    assert process.killed
    with pytest.raises(OSError):
        windows_tree(RecordingKernel32(CreateJobObjectW=0))


def test_windows_evidence() -> None:
    assert proctree_windows.exit_evidence(78) == (78, None)
    assert proctree_windows.exit_evidence(0xC0000005) == (0xC0000005, "NTSTATUS 0xC0000005")
    assert proctree_windows.holds_private(0)
