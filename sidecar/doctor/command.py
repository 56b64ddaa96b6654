"""`python -m sidecar doctor`: examine the running instance, or one started for it, and name the cures."""

import argparse
import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from sidecar.doctor.client import Client
from sidecar.doctor.finding import Finding
from sidecar.doctor.instance import NoInstanceError, examined
from sidecar.doctor.load import concurrency, performance
from sidecar.doctor.resources import resources
from sidecar.doctor.routes import endpoints
from sidecar.doctor.service import emotion, errors, health
from sidecar.settings import Settings

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

Examination = Callable[[Client, Settings], Iterator[Finding]]
TESTS: tuple[Examination, ...] = (health, emotion, endpoints, errors, performance, concurrency, resources)
NAMES = tuple(test.__name__ for test in TESTS)


def main_doctor(argv: Sequence[str]) -> int:
    """0: nothing is wrong (warnings are allowed), 1: something is, 2: usage, 130: interrupted."""
    parser = argparse.ArgumentParser("sidecar doctor", allow_abbrev=False, description=__doc__)
    parser.add_argument("--test", action="append", choices=NAMES, metavar="|".join(NAMES), help="only this; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args(argv)
    settings = Settings.load()
    chosen = [test for test in TESTS if test.__name__ in (arguments.test or NAMES)]
    found: list[tuple[str, Finding]] = []
    instance: dict[str, Any] | None = None
    try:
        with examined(settings) as (handshake, started):
            instance = {"base_url": handshake.base_url, "version": handshake.app_version, "started": started}
            if not arguments.json:
                where = f"{handshake.base_url}{' (started for this)' if started else ''}"
                print(f"{where}, {handshake.app_version}", flush=True)
            for test in chosen:
                for finding in _examine(test, Client(handshake), settings):
                    found.append((test.__name__, finding))
                    if not arguments.json:
                        print(finding.line(test.__name__), flush=True)
    except NoInstanceError as error:
        found.append(("start", Finding("fail", "instance", error.message, "python3 launcher.py logs")))
        if not arguments.json:
            print(found[-1][1].line("start"))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return _conclude(found, instance, arguments.json)


def _examine(test: Examination, client: Client, settings: Settings) -> Iterator[Finding]:
    """A test that cannot go on is a finding, too."""
    with closing(client):
        try:
            yield from test(client, settings)
        except (OSError, http.client.HTTPException) as error:
            yield Finding("fail", "connection", f"{type(error).__name__}: {error}", "python3 launcher.py logs")


def _conclude(found: list[tuple[str, Finding]], instance: dict[str, Any] | None, as_json: bool) -> int:
    counts = {level: sum(finding.level == level for _, finding in found) for level in ("ok", "info", "warn", "fail")}
    healthy = counts["fail"] == 0
    if as_json:
        findings = [{"test": test, **asdict(finding)} for test, finding in found]
        print(json.dumps({"healthy": healthy, "instance": instance, "counts": counts, "findings": findings}))
    else:
        print(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures", flush=True)
    return 0 if healthy else EXIT_FAILED
