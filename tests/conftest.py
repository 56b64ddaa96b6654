"""Fixtures of the whole suite."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.product import Product, write_fake

STRICT = bool(os.environ.get("SIDECAR_TEST_STRICT"))

# A shell starts its background jobs and `nohup` its command with one of them ignored, and children inherit it; tests
# here are about those of a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is said to be installed (`.ci/run`), a skip for a missing part is a failure."""
    report = yield
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, though nothing may be missing here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One running product with the embedded model, shared by tests that leave it as it was."""
    with Product(tmp_path_factory.mktemp("product home")) as running:
        yield running


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A model hub of one's own, still empty."""
    with Hub() as running:
        yield running


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Product]]:
    """Start products of one's own; none outlives the test."""
    running: list[Product] = []

    def start(*flags: str, wait: bool = True, **env: str) -> Product:
        one = Product(tmp_path / f"home{len(running)}", *flags, wait=wait, **env)
        running.append(one)
        return one

    yield start
    for one in running:
        one.close()


@pytest.fixture
def launch_fake(launch: Callable[..., Product], tmp_path: Path) -> Callable[..., Product]:
    """Start a product whose emotion model is a fake runner with these options."""

    def start(*, env: dict[str, str] | None = None, wait: bool = True, **options: Any) -> Product:
        folder = write_fake(tmp_path / "catalogue", **options)
        return launch(wait=wait, SIDECAR_CATALOGUE=str(folder), **(env or {}))

    return start
