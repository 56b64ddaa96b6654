"""GPU figures: without a GPU, and through NVML's real bindings against a stand-in for the driver's library."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.server.gpu import Identity, absence
from tests.product import ROOT, Product, until

SOURCE = Path(__file__).parent.parent / "fixtures" / "nvml.c"
SUMMED = {"utilization", "memory_used", "memory_total", "memory_percent", "peak_utilization"}


@pytest.fixture
def driver(launch: Callable[..., Product], tmp_path: Path) -> Callable[..., Product]:
    """Start a product on a computer with such a driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc, gcc) to make the driver's stand-in")

    def start(*macros: str) -> Product:
        library = tmp_path / "libnvidia-ml.so.1"
        flags = ["-shared", "-fPIC", "-O1", "-nostdlib", "-ffreestanding", "-Wall", "-Werror"]
        subprocess.run(
            [compiler, *flags, *(f"-D{macro}" for macro in macros), "-o", str(library), str(SOURCE)], check=True
        )
        return launch(LD_LIBRARY_PATH=str(tmp_path), SIDECAR_PROBE_INTERVAL="600")

    return start


def stats(product: Product) -> Any:
    return product.call("GET", "/api/gpu_stats").json()


def health(product: Product) -> tuple[bool, bool, str | None]:
    answer = product.call("GET", "/health").json()
    return answer["gpu_available"], answer["cuda_available"], answer["gpu_name"]


def test_this_computer_as_it_is(product: Product) -> None:
    answer = stats(product)
    available, cuda, name = health(product)
    if answer["available"]:
        assert answer["reason"] is None and available and cuda and name == answer["devices"]["cuda:0"]["name"]
        assert answer["memory_total"] > 0
    else:
        assert answer["reason"] and answer["devices"] == {}
        assert {answer[key] for key in SUMMED} == {0.0}
        assert (available, cuda, name) == (False, False, None)


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_wanted_and_not_there_is_warned_of(launch: Callable[..., Product], wanted: str) -> None:
    if wanted == "mps" and sys.platform == "darwin":
        pytest.skip("this computer may have it")
    product = launch(SIDECAR_DEVICE=wanted)
    answer = product.call("GET", "/health").json()
    if wanted == "cuda" and answer["cuda_available"]:
        assert answer["warnings"] == []
    else:
        [warning] = answer["warnings"]
        assert f"SIDECAR_DEVICE={wanted}" in warning and answer["status"] == "healthy"
    assert (answer["device"], answer["device_reason"]) == ("cpu", "minilm is made for the CPU")


def test_a_gpu_that_is_wanted_and_there_is_not_warned_of() -> None:
    assert absence("cuda", "cpu", Identity(available=True, cuda=True, name="one")) == []
    assert absence("cuda", "cuda:0", Identity(available=False, cuda=False, name=None)) == [], "NVML is not CUDA"
    assert absence("auto", "cpu", Identity(available=False, cuda=False, name=None)) == []


def maps(product: Product) -> str:
    return Path(f"/proc/{product.server().pid}/maps").read_text()


def test_two_gpus_and_the_peak(driver: Callable[..., Product]) -> None:
    product = driver()
    assert "libnvidia-ml" not in maps(product), "nobody has asked yet"
    first = stats(product)
    assert "libnvidia-ml" in maps(product)
    assert first["available"] is True and first["reason"] is None
    assert first["devices"]["cuda:0"] == {
        "name": "Imaginary RTX 1",
        "utilization": 30.0,
        "memory_used": 6.0,
        "memory_total": 24.0,
        "memory_percent": 25.0,
        "peak_utilization": 30.0,
    }
    assert first["devices"]["cuda:1"]["memory_used"] == 0.0 and list(first["devices"]) == ["cuda:0", "cuda:1"]
    assert first["utilization"] == 15.0, "of both"
    assert (first["memory_used"], first["memory_total"], first["memory_percent"]) == (6.0, 48.0, 12.5)
    # Between two readings the handle is let go: the stand-in refuses to work for one that is opened twice.
    readings = [stats(product)["devices"]["cuda:0"] for _ in range(3)]
    assert [each["utilization"] for each in readings] == [90.0, 50.0, 10.0]
    assert [each["peak_utilization"] for each in readings] == [90.0, 90.0, 90.0]
    assert health(product) == (True, True, "Imaginary RTX 1")
    # Health asked for no further reading: the next one is the fifth.
    health(product)
    assert stats(product)["devices"]["cuda:0"]["utilization"] == 30.0
    assert product.call("POST", "/reset").status == 200
    assert [stats(product)["peak_utilization"] for _ in range(2)] == [90.0, 90.0]
    assert product.call("POST", "/reset").status == 200
    assert stats(product)["peak_utilization"] == 10.0, "of the readings since"


def test_memory_by_process_for_residency(driver: Callable[..., Product], tmp_path: Path) -> None:
    driver()  # compiles the stand-in
    code = "import asyncio; from sidecar.server.gpu import Gpu; print(asyncio.run(Gpu().vram()))"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert told.strip() == f"Vram(total_bytes={24 << 30}, by_process={{4242: {3 << 30}}})"


def test_an_old_driver_has_the_first_memory_call(driver: Callable[..., Product]) -> None:
    assert stats(driver("OLD"))["devices"]["cuda:0"]["memory_used"] == 7.0


def test_what_the_driver_does_not_tell_is_null(driver: Callable[..., Product]) -> None:
    product = driver("MIG", "SHARED")
    answer = stats(product)
    device = answer["devices"]["cuda:0"]
    assert answer["available"] and device["utilization"] is None and device["memory_used"] is None
    assert {answer[key] for key in SUMMED} == {0.0}, "those who add up and format get numbers"
    assert health(product) == (True, True, "Imaginary RTX 1")


@pytest.mark.parametrize(("macro", "said"), [("NO_DEVICE", "no GPU"), ("BROKEN", "Driver Not Loaded")])
def test_a_driver_without_use_says_why(driver: Callable[..., Product], macro: str, said: str) -> None:
    product = driver(macro)
    answer = stats(product)
    assert answer["available"] is False and said in answer["reason"] and answer["devices"] == {}
    assert health(product) == (False, False, None)


def test_a_driver_that_hangs_holds_up_nobody(driver: Callable[..., Product]) -> None:
    product = driver("HANG")
    started = time.monotonic()
    assert health(product) == (False, False, None), "what is not known is not claimed"
    first_s = time.monotonic() - started
    assert first_s < 15.0
    started = time.monotonic()
    assert "has not answered" in stats(product)["reason"]
    assert health(product) == (False, False, None)
    assert time.monotonic() - started < first_s, "only the first one waits, these would be two waits more"
    assert product.emotion("I am so happy today!").json()["emotion"] == "joy"
    assert product.close() == 0


def test_askers_at_the_same_time_share_a_reading(driver: Callable[..., Product]) -> None:
    product = driver()
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: stats(product), range(64)))
    assert all(answer["available"] for answer in answers), "two at once would find the stand-in opened twice"
    until(lambda: stats(product)["peak_utilization"] == 90.0, "it goes on")
