"""NVIDIA GPUs through NVML, read in a thread of its own when somebody asks, and let go at once.

An open NVML handle keeps a laptop's GPU from sleeping, and a driver in trouble may block a call for good: so nothing is
held between two readings, nobody waits long, and the thread is one that the process need not wait for at its end.
"""

import asyncio
import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sidecar.inference.residency import Vram

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_WAIT_S = 2.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One GPU: utilisation in %, memory in bytes; None where the driver does not tell (MIG, shared memory)."""

    name: str
    utilization: float | None
    used_bytes: int | None
    total_bytes: int | None


@dataclass(frozen=True)
class Reading:
    """What NVML said: the devices in its own (PCI) order, and why there are none."""

    devices: tuple[Device, ...] = ()
    by_process: dict[int, int] = field(default_factory=dict)
    """Bytes that each process holds, by process id, over all devices."""
    cuda: bool = False
    """Whether the driver offers CUDA."""
    reason: str | None = None


_UNANSWERED = Reading(reason=f"the NVIDIA driver has not answered within {_WAIT_S:g} s")


class Identity(NamedTuple):
    """For /health: whether there is a GPU, and a driver that offers CUDA on it."""

    available: bool
    cuda: bool
    name: str | None


def absence(wanted: str, device: str, found: Identity) -> list[str]:
    """What /health warns of where SIDECAR_DEVICE wants what this computer has not; `device` is the one in use."""
    if wanted == "cuda" and not (found.cuda or device.startswith("cuda")):
        return ["SIDECAR_DEVICE=cuda: there is no NVIDIA GPU with a driver for CUDA; models run on the CPU"]
    if wanted == "mps" and sys.platform != "darwin":
        return ["SIDECAR_DEVICE=mps: only macOS has that; models run on the CPU"]
    return []


def read() -> Reading:
    """Blocking: milliseconds, or seconds where the driver has to wake the GPU first."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        # Found out first, because the bindings cost 3 MB and 30 ms, and most computers have no such GPU.
        return Reading(reason=f"no NVIDIA driver is installed ({_LIBRARY} is missing)")
    import pynvml

    try:
        with _nvml(pynvml):
            count = pynvml.nvmlDeviceGetCount()
            devices = tuple(_device(pynvml, index) for index in range(count))
            by_process = _by_process(pynvml, count)
            cuda = bool(devices) and _or_none(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2) is not None
    except pynvml.NVMLError as error:
        return Reading(reason=f"the NVIDIA driver cannot be used: {error}")
    return Reading(devices, by_process, cuda, None if devices else "the NVIDIA driver sees no GPU")


@contextlib.contextmanager
def _nvml(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    rates = _or_none(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    # The second version leaves out what the driver keeps for itself, as nvidia-smi does; old drivers lack it.
    memory = _or_none(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or _or_none(
        nvml, nvml.nvmlDeviceGetMemoryInfo, handle
    )
    return Device(
        nvml.nvmlDeviceGetName(handle),
        float(rates.gpu) if rates else None,
        int(memory.used) if memory else None,
        int(memory.total) if memory else None,
    )


def _by_process(nvml: Any, count: int) -> dict[int, int]:
    """Empty where the driver does not tell (Windows' display driver model)."""
    held: dict[int, int] = {}
    for index in range(count):
        for process in (
            _or_none(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetHandleByIndex(index)) or ()
        ):
            held[process.pid] = held.get(process.pid, 0) + int(process.usedGpuMemory or 0)
    return held


def _or_none(nvml: Any, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except (nvml.NVMLError, nvml.NVMLLibraryMismatchError):  # the second: a driver older than the bindings
        return None


@dataclass
class Gpu:
    """Readings for the routes; askers at the same time share one."""

    _peaks: dict[str, float] = field(default_factory=dict)
    _running: "asyncio.Future[Reading] | None" = None
    _began: float = 0.0
    _identity: Identity | None = None

    async def identity(self) -> Identity:
        """Read once; until the driver has answered, nothing is claimed."""
        return self._identity or _identify(await self._read())

    async def vram(self) -> Vram:
        """What residency needs to know."""
        reading = await self._read()
        return Vram((reading.devices[0].total_bytes or 0) if reading.devices else 0, reading.by_process)

    async def stats(self) -> dict[str, Any]:
        """The answer of /api/gpu_stats: %, GiB; the peak is the highest of the readings so far."""
        reading = await self._read()
        devices = {f"cuda:{index}": self._described(index, each) for index, each in enumerate(reading.devices)}
        used, total = (
            _sum(each.used_bytes for each in reading.devices),
            _sum(each.total_bytes for each in reading.devices),
        )
        known = [each.utilization for each in reading.devices if each.utilization is not None]
        return {
            "available": bool(devices),
            "reason": reading.reason,
            "utilization": round(sum(known) / len(known), 1) if known else 0.0,
            **_memory(used, total),
            "peak_utilization": max((each["peak_utilization"] for each in devices.values()), default=0.0),
            "devices": devices,
        }

    def reset_peaks(self) -> None:
        """The next reading is the highest so far."""
        self._peaks.clear()

    def _described(self, index: int, device: Device) -> dict[str, Any]:
        key = f"{index} {device.name}"
        peak = self._peaks[key] = max(self._peaks.get(key, 0.0), device.utilization or 0.0)
        return {
            "name": device.name,
            "utilization": device.utilization,
            **_memory(device.used_bytes, device.total_bytes),
            "peak_utilization": peak,
        }

    async def _read(self) -> Reading:
        now = asyncio.get_running_loop().time()
        if self._running is None or self._running.done():
            self._running, self._began = _in_thread(), now
        # A driver that hangs is waited for once, not by everybody who asks.
        running = self._running
        await asyncio.wait([running], timeout=max(0.0, self._began + _WAIT_S - now))
        if not running.done():
            return _UNANSWERED
        reading = running.result()
        self._identity = _identify(reading)
        return reading


def _identify(reading: Reading) -> Identity:
    return Identity(bool(reading.devices), reading.cuda, reading.devices[0].name if reading.devices else None)


def _memory(used: int | None, total: int | None) -> dict[str, float | None]:
    return {
        "memory_used": None if used is None else round(used / _GIB, 3),
        "memory_total": None if total is None else round(total / _GIB, 3),
        "memory_percent": None if used is None or total is None else round(100 * used / max(total, 1), 1),
    }


def _sum(values: Iterator[int | None]) -> int:
    return sum(value or 0 for value in values)


def _in_thread() -> "asyncio.Future[Reading]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Reading] = loop.create_future()

    def run() -> None:
        try:
            reading = read()
        except Exception as error:  # a driver's library can fail in ways of its own
            reading = Reading(reason=f"NVML failed: {type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(future.set_result, reading)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    return future
