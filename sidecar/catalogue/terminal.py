"""How far a command has come, for people and for programs."""

import json
import sys
import time
from dataclasses import asdict, replace

from sidecar.catalogue.downloader import DownloadProgress, OnProgress

_REPORT_S = 0.25


class Terminal:
    """Progress for people: one line, rewritten in place on a terminal, a new one every tenth part in a log."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said = ""
        self._shown = False

    def __call__(self, now: DownloadProgress) -> None:
        line = f"{now.item}: {now.state}"
        if now.state in ("downloading", "verifying", "copying"):
            percent = f" {100 * now.done // now.total:3d}%" if now.total else ""
            eta = "" if now.eta_s is None else f", {now.eta_s:,.0f} s left"
            of = f" of {megabytes(now.total)}" if now.total else ""
            line += f"{percent} {megabytes(now.done)}{of}, {now.rate / 1e6:,.1f} MB/s{eta}"
        if self._live:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self._shown = True
            return
        mark = f"{now.state} {10 * now.done // now.total if now.total else ''}"
        if mark != self._said:
            self._said = mark
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print(file=sys.stderr)


class Events:
    """Progress for programs."""

    def __call__(self, now: DownloadProgress) -> None:
        print(json.dumps({"event": "progress", **asdict(now)}), flush=True)

    def end(self) -> None:
        """Nothing is left open."""


class Disk:
    """Counts what is read or copied on this computer."""

    def __init__(self, item: str, total: int | None, show: OnProgress, *, reading: bool = False) -> None:
        self._now = DownloadProgress(item, 0, total, state="verifying" if reading else "copying")
        self._show = show
        self._began = self._shown = time.monotonic()
        self._done = 0

    def __call__(self, _path: str, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown < _REPORT_S:
            return
        self._shown = now
        rate, total = self._done / (now - self._began), self._now.total
        eta_s = None if total is None else max(0, total - self._done) / rate
        self._show(replace(self._now, done=self._done, rate=rate, eta_s=eta_s))


def megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
