"""What the engine adds to one text: bare model, pool and pipe without HTTP, and the whole product, text by text.

Run as `python -m benchmarks.overhead`; see benchmarks/README.md. Needs no peers.
"""

import json
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import report
from benchmarks.load import PATH, read_texts
from benchmarks.peers import contestants
from benchmarks.report import Aim, Spread
from sidecar.capabilities import BY_NAME
from sidecar.capabilities.base import Meta
from sidecar.catalogue.catalogue import Catalogue
from sidecar.inference.pool import Pool
from sidecar.runner.adapters import make_adapter
from sidecar.settings import Settings
from tests.product import Product

EMOTION = BY_NAME["emotion"]


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="each over all sentences")
    options = parser.parse_args()
    contestants.forget_python_settings()
    report.print_machine()
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as folder, Product(Path(folder)) as product:
        figures = uvloop.run(_measure(product, options.rounds))  # as the server
    aims = _aims(figures)
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


async def _measure(product: Product, rounds: int) -> dict[str, list[float]]:
    """Per round, the medians of one text's time in ms; the three take turns at every text."""
    settings = Settings.load()
    catalogue = Catalogue.of(settings)
    pool = Pool(catalogue, settings, lambda *_: None, lambda line: None)
    spec = catalogue.get("minilm")
    adapter = make_adapter(spec, threads=1, device="cpu")
    adapter.load(lambda item, done, total, unit: None)
    # A bare socket and requests written beforehand: http.client alone would cost as much as the server.
    client = socket.create_connection(("127.0.0.1", product.port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    texts = read_texts()
    requests = {text: _request(product, text) for text in texts}

    def bare(text: str) -> None:
        EMOTION.finish(EMOTION.run_batch(adapter, [text])[0], Meta("minilm", 0.0))

    def whole(text: str) -> None:
        client.sendall(requests[text])
        answer = client.recv(65536)
        while not answer.endswith(b"}"):  # head and body are two writes
            answer += client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")

    async def engine(text: str) -> None:
        output = await pool.infer(spec, "emotion", text, EMOTION.cost(text))
        EMOTION.finish(output, Meta("minilm", 0.0))

    medians: dict[str, list[float]] = {"bare": [], "engine": [], "whole": []}
    try:
        for turn in range(rounds + 1):
            taken: dict[str, list[float]] = {name: [] for name in medians}
            for text in texts:
                taken["bare"].append(_time(lambda text=text: bare(text)))
                started = time.perf_counter()
                await engine(text)
                taken["engine"].append(1000 * (time.perf_counter() - started))
                taken["whole"].append(_time(lambda text=text: whole(text)))
            if turn:  # the first one warms up
                for name, values in taken.items():
                    medians[name].append(Spread.of(values).median)
    finally:
        await pool.close()
    return medians


def _request(product: Product, text: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{product.port}\r\nAuthorization: Bearer {product.token}\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def _time(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def _aims(figures: dict[str, list[float]]) -> list[Aim]:
    for name, values in figures.items():
        print(f"{name:<8} {Spread.of(values).text(3)} ms a text")
    added = {
        name: Spread.of([mine - bare for mine, bare in zip(figures[name], figures["bare"], strict=True)])
        for name in ("engine", "whole")
    }
    return [
        Aim("added without HTTP and JSON (ms)", added["engine"], 0.3, False),
        Aim("added by the whole product (ms)", added["whole"], 0.5, False),
    ]


if __name__ == "__main__":
    main()
