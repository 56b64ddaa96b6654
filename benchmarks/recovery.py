"""SIGKILL of the server, then of the runner, again and again under steady clients.

Run as `python -m benchmarks.recovery`; see benchmarks/README.md.
"""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.load import Steady, Target
from benchmarks.peers.contestants import forget_python_settings
from benchmarks.report import Aim, Spread
from tests.product import Product, until

DEADLINE_S = 30.0
# Killing on purpose must not look like a crash loop, which ends in phase `failed`.
RELAXED = {"SIDECAR_RESTART_LIMIT": "1000000", "SIDECAR_RESTART_DELAYS": "0"}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--calm-seconds", type=float, default=1.0, help="undisturbed load between two kills (s)")
    options = parser.parse_args()
    forget_python_settings()
    report.print_machine()
    server = _run(options.kills, options.clients, options.calm_seconds, _kill_server)
    _print("server", server)
    runner = _run(options.kills, options.clients, options.calm_seconds, _kill_runner)
    _print("runner", runner)
    aims = [
        Aim("server killed: connections refused", Spread.of([server["refused"]]), 0, False),
        Aim("server killed: answers other than 200", Spread.of([len(server["failed"])]), 0, False),
        Aim("server killed: time to the next answer", Spread.of(server["next_answer_s"]), 1.5, False, " s"),
        Aim("runner killed: requests that failed", Spread.of([_lost(runner)]), 0, False),
    ]
    report.print_aims(aims)
    report.write_json(options.json, {"server": server, "runner": runner}, aims)


def _lost(figures: dict[str, Any]) -> int:
    return int(figures["refused"] + figures["reset"] + len(figures["failed"]))


def _run(kills: int, clients: int, calm_s: float, kill: Any) -> dict[str, Any]:
    next_answer_s, gaps = [], []
    with (
        tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as home,
        Product(Path(home), wait=True, **RELAXED) as product,
        Steady(Target(product.port, product.token, product.process.pid), clients) as load,
    ):
        port = product.port
        load.first_answer_after(time.monotonic())
        for turn in range(kills):
            time.sleep(calm_s)
            killed_at = time.monotonic()
            kill(product)
            next_answer_s.append(load.first_answer_after(killed_at) - killed_at)
            product.wait("ready", deadline_s=DEADLINE_S)
            time.sleep(calm_s)
            gaps.append(load.longest_gap(killed_at - calm_s / 2, time.monotonic()))
            print(f"kill {turn + 1}: next answer {next_answer_s[-1]:.3f} s, longest gap {gaps[-1]:.3f} s", flush=True)
        assert product.port == port, "the port changed"
        restarts = product.handshake["restarts"]["count"]
    return {
        "answered": len(load.answers),
        "refused": load.refused,
        "reset": load.reset,
        "failed": load.failed,
        "next_answer_s": next_answer_s,
        "longest_gap_s": gaps,
        "server_restarts": restarts,
    }


def _kill_server(product: Product) -> None:
    """Returns when the supervisor has a new server running."""
    pid = product.server().pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: (product.handshake["server"] or {}).get("pid") not in (None, pid), "a new server", DEADLINE_S)


def _kill_runner(product: Product) -> None:
    """Returns when the server has a new runner."""
    runner = until(product.runner, "a runner", DEADLINE_S)
    runner.kill()
    until(lambda: (product.runner() or runner) != runner, "a new runner", DEADLINE_S)


def _print(what: str, figures: dict[str, Any]) -> None:
    print(
        f"{what} killed {len(figures['next_answer_s'])} times: {figures['answered']} answered,"
        f" {figures['refused']} refused, {figures['reset']} reset, not 200: {figures['failed'] or 0};"
        f" next answer {Spread.of(figures['next_answer_s']).text()} s,"
        f" longest gap {Spread.of(figures['longest_gap_s']).text()} s; server restarts {figures['server_restarts']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
