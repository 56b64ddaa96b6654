"""From spawn to the first answers, and what it costs to stay idle.

Run as `python -m benchmarks.startup`; see benchmarks/README.md.
"""

import http.client
import json
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks import footprint, report
from benchmarks.load import PATH
from benchmarks.peers.contestants import forget_python_settings
from benchmarks.report import Aim, Spread
from tests.product import Product, until

TEXT = "I am so happy today!"
SETTLE_S = 2.0
AIMS = {
    "live_s": ("spawn → /health/live", 0.6, " s"),
    "emotion_s": ("spawn → first emotion answer", 2.0, " s"),
    "idle_rss_mib": ("supervisor + server, idle RSS", 120.0, " MiB"),
    "idle_cpu_percent": ("supervisor + server, idle CPU", 0.5, " %"),
}
OTHERS = {
    "handshake_s": ("spawn → port and token known", " s"),
    "supervisor_rss_mib": ("supervisor, idle RSS", " MiB"),
    "server_rss_mib": ("server, idle RSS", " MiB"),
    "runner_rss_mib": ("runner, idle RSS", " MiB"),
    "supervisor_cpu_percent": ("supervisor, idle CPU", " %"),
    "server_cpu_percent": ("server, idle CPU", " %"),
    "runner_cpu_percent": ("runner, idle CPU", " %"),
}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="idle CPU window of each launch (s)")
    options = parser.parse_args()
    forget_python_settings()
    report.print_machine()
    _launch(0.1)  # compiles the bytecode and warms the disk cache: a user's second launch is what is measured
    launches = []
    for turn in range(options.launches):
        launches.append(_launch(options.idle_seconds))
        print(f"launch {turn + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in launches[-1].items()), flush=True)
    spreads = {key: Spread.of([launch[key] for launch in launches]) for key in launches[0]}
    for key, (name, unit) in OTHERS.items():
        print(f"  {name:<34} {spreads[key].text()}{unit}")
    aims = [Aim(name, spreads[key], limit, False, unit) for key, (name, limit, unit) in AIMS.items()]
    report.print_aims(aims)
    report.write_json(options.json, {"launches": launches}, aims)


def _launch(idle_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as home, Product(Path(home), wait=False) as product:
        figures = _first_answers(product)
        product.wait("ready")
        time.sleep(SETTLE_S)
        server = product.server()
        core, runners = [psutil.Process(product.process.pid), server], product.runners()
        figures |= {
            "idle_rss_mib": footprint.rss_mib(core),
            "supervisor_rss_mib": footprint.rss_mib(core[:1]),
            "server_rss_mib": footprint.rss_mib(core[1:]),
            "runner_rss_mib": footprint.rss_mib(runners),
        }
        used = footprint.cpu_percent_each([*core, *runners], idle_s)
        return figures | {
            "idle_cpu_percent": sum(used[:2]),
            "supervisor_cpu_percent": used[0],
            "server_cpu_percent": used[1],
            "runner_cpu_percent": sum(used[2:]),
        }


def _first_answers(product: Product) -> dict[str, float]:
    """Both questions are asked as soon as the port is known; they wait in the backlog for the server."""
    until(lambda: product.events, "the first event", pause_s=0.001)
    figures = {"handshake_s": time.monotonic() - product.started_at}
    headers = {"Authorization": f"Bearer {product.token}"}
    body = json.dumps({"text": TEXT})

    def ask(key: str, method: str, path: str, content: str | None) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=60)
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status == 200, (path, response.status)
        figures[key] = time.monotonic() - product.started_at

    threads = [
        threading.Thread(target=ask, args=("live_s", "GET", "/health/live", None)),
        threading.Thread(target=ask, args=("emotion_s", "POST", PATH, body)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures


if __name__ == "__main__":
    main()
