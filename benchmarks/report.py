"""Numbers for people and, with --json, for programs."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import psutil


class Spread(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


class Aim(NamedTuple):
    """What a figure should be, and whether the median is."""

    name: str
    spread: Spread
    limit: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.spread.median >= self.limit if self.at_least else self.spread.median <= self.limit

    def text(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "MISSED"
        measured = self.spread.text() + self.unit
        return f"{self.name:<50} {measured:>26}   aim {sign} {self.limit:g}{self.unit}   {verdict}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours to theirs, paired within each round, so that a machine that slows down for a while slows both."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def print_aims(aims: Sequence[Aim]) -> None:
    print("\nmedians (min–max):")
    for aim in aims:
        print("  " + aim.text())


def parser(text: str | None) -> argparse.ArgumentParser:
    """Every script has --json."""
    made = argparse.ArgumentParser(description=text, allow_abbrev=False)
    made.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures there, too")
    return made


def write_json(path: Path | None, figures: dict[str, Any], aims: Sequence[Aim]) -> None:
    """Raw figures, the aims with their verdicts, and what the machine is."""
    if path is None:
        return
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "aims": [{**aim._asdict(), "spread": aim.spread._asdict(), "met": aim.met} for aim in aims],
        "figures": figures,
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures depend on; the load average tells whether the machine was quiet."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def print_machine() -> None:
    print(", ".join(f"{name} {value}" for name, value in machine().items()))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
