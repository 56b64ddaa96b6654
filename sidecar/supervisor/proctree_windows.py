"""A server's process tree on Windows: a Job Object that ends with its last handle, which only this process holds."""

import base64
import ctypes
import signal
import socket
import subprocess
import threading
from ctypes import wintypes
from typing import Any, Protocol, cast

STOP_SIGNALS: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGBREAK", 21))
HANGUP_SIGNALS: tuple[int, ...] = ()
MAX_WAIT_S = 1.0  # a console event does not interrupt the queue's wait; the handler runs when it returns

CREATE_NEW_PROCESS_GROUP = 0x00000200
CREATE_NO_WINDOW = 0x08000000
JOB_OBJECT_EXTENDED_LIMIT_INFORMATION = 9
JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x00002000
PROCESS_TERMINATE = 0x0001
PROCESS_SET_QUOTA = 0x0100
SO_EXCLUSIVEADDRUSE = ~socket.SO_REUSEADDR  # winsock2.h: ((int)(~SO_REUSEADDR))
KILLED_EXIT_CODE = 1


class Kernel32(Protocol):
    """The part of kernel32.dll that is used; a test passes a recording one."""

    def CreateJobObjectW(self, attributes: Any, name: Any) -> int | None: ...
    def SetInformationJobObject(self, job: Any, kind: int, info: Any, size: int) -> int: ...
    def OpenProcess(self, access: int, inherit: bool, pid: int) -> int | None: ...
    def AssignProcessToJobObject(self, job: Any, process: Any) -> int: ...
    def TerminateJobObject(self, job: Any, code: int) -> int: ...
    def CloseHandle(self, handle: Any) -> int: ...


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


def load_kernel32() -> Kernel32:
    """kernel32.dll with handles as pointers: ctypes' default int would cut them on 64 bits."""
    dll = cast(Any, ctypes).WinDLL("kernel32", use_last_error=True)
    dll.CreateJobObjectW.restype = dll.OpenProcess.restype = wintypes.HANDLE
    dll.CreateJobObjectW.argtypes = (ctypes.c_void_p, wintypes.LPCWSTR)
    dll.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    dll.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
    dll.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
    dll.TerminateJobObject.argtypes = (wintypes.HANDLE, wintypes.UINT)
    dll.CloseHandle.argtypes = (wintypes.HANDLE,)
    return cast(Kernel32, dll)


class Tree:
    """One server and all it starts.

    When this process ends, however it ends, Windows closes the job's handle and ends everything in the job.
    """

    def __init__(self, listener: socket.socket, kernel32: Kernel32 | None = None) -> None:
        self._listener = listener
        self._kernel32 = kernel32 or load_kernel32()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._job: int | None = self._kernel32.CreateJobObjectW(None, None)
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
        if not self._job or not self._kernel32.SetInformationJobObject(
            self._job, JOB_OBJECT_EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
        ):
            raise OSError("cannot create a Job Object")

    def spawn_options(self) -> dict[str, Any]:
        """Keyword arguments of Popen."""
        return {"creationflags": CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW}

    def environment(self) -> dict[str, str]:
        """Nothing: the socket goes by the first control message."""
        return {}

    def adopt(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """Take charge of the spawned server. Returns the first control message, if it needs one.

        A Python interpreter needs some 10 ms before it can start a process of its own: nothing escapes the job.
        """
        self._process = process
        handle = self._kernel32.OpenProcess(PROCESS_TERMINATE | PROCESS_SET_QUOTA, False, process.pid)
        if not handle or not self._kernel32.AssignProcessToJobObject(self._job, handle):
            process.kill()
            raise OSError(f"cannot put process {process.pid} into its Job Object")
        self._kernel32.CloseHandle(handle)
        share = cast(Any, self._listener).share(process.pid)
        return {"op": "socket", "share": base64.b64encode(share).decode("ascii")}

    def wait(self) -> int:
        """Wait for the server, kill whatever is left in its job; returns Popen's returncode."""
        assert self._process is not None
        returncode = self._process.wait()
        with self._lock:
            self._terminate_job()
            self._kernel32.CloseHandle(self._job)
            self._job = None
        return returncode

    def terminate(self) -> None:
        """Windows has no SIGTERM for a process without a console window: asking was the control pipe's part."""
        self.kill()

    def kill(self) -> None:
        """End the whole tree."""
        with self._lock:
            self._terminate_job()

    def _terminate_job(self) -> None:
        if self._job is not None:
            self._kernel32.TerminateJobObject(self._job, KILLED_EXIT_CODE)


def prepare_listener(listener: socket.socket) -> None:
    """Options to set before bind: without this one another program could bind the same port on Windows."""
    listener.setsockopt(socket.SOL_SOCKET, SO_EXCLUSIVEADDRUSE, 1)


def holds_private(fd: int) -> bool:
    """The user profile's access list keeps others out; mode bits mean nothing here."""
    return True


def exit_evidence(returncode: int) -> tuple[int | None, str | None]:
    """(exit code, None); a crash is an NTSTATUS such as 0xC0000005, named in the second place."""
    return returncode, f"NTSTATUS 0x{returncode & 0xFFFFFFFF:08X}" if returncode & 0xC0000000 == 0xC0000000 else None
