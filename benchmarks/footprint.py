"""CPU and memory of processes and of whole process trees."""

import contextlib
import time
from collections.abc import Iterable, Sequence

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def cpu_percent(processes: Iterable[psutil.Process], seconds: float) -> float:
    """CPU time all of them use within the next `seconds`, in percent of one core."""
    return sum(cpu_percent_each(list(processes), seconds))


def cpu_percent_each(processes: Sequence[psutil.Process], seconds: float) -> list[float]:
    """CPU time each of them uses within the next `seconds`, in percent of one core."""
    before = [_cpu_s(process) for process in processes]
    started = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - started
    return [100 * (_cpu_s(process) - then) / took_s for process, then in zip(processes, before, strict=True)]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def rss_mib(processes: Iterable[psutil.Process]) -> float:
    """Resident memory (MiB); pages that two processes share are counted twice."""
    return sum(process.memory_info().rss for process in processes) / 2**20


def end_tree(pid: int, patience_s: float = 5.0) -> None:
    """SIGTERM to the parent, then SIGKILL by pid to what is left: LitServe's workers outlive their parent."""
    try:
        processes = tree(pid)
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        processes[0].terminate()
    _, alive = psutil.wait_procs(processes[:1], timeout=patience_s)
    for process in (*alive, *processes[1:]):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=patience_s)
