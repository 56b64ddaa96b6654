"""Fixtures of the supervisor's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.supervisor.harness import Running

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start supervisors; none outlives the test."""
    running: list[Running] = []

    def begin(*flags: str, home: Path | None = None, standin: str = "", **options: object) -> Running:
        running.append(Running(home or tmp_path / "home", *flags, standin=standin, **options))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    for one in running:
        one.close()
