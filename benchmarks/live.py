"""Live transcription with many speaking at once: how far the texts are behind what is said.

Everybody says the same two prompts (Debian's asterisk-core-sounds-en-wav) in real time to the embedded recogniser.

Run as `python -m benchmarks.live`; see benchmarks/README.md.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks import report
from benchmarks.report import Aim, Spread
from tests.product import Product
from tests.prompts import load, prompts
from tests.sound import RATE, pcm16

PIECE_S = 0.1
START_S = 0.05  # between two sockets
MAX_BEHIND_S = 2.0
AIMED_AT = 4


class Heard(NamedTuple):
    """One socket's: seconds by which texts came after the end of their last word, and when everything was told."""

    finals_s: list[float]
    partials_s: list[float]
    done_s: float


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--sockets", type=int, nargs="+", default=[1, AIMED_AT, 8, 20])
    options = parser.parse_args()
    report.print_machine()
    quiet = np.zeros(RATE, np.float32)
    chosen = prompts(100)
    sound = pcm16(np.concatenate([quiet, load(chosen[2]), quiet, load(chosen[6]), quiet]))
    figures: dict[str, Any] = {"sound_s": len(sound) / 2 / RATE}
    aims = []
    with tempfile.TemporaryDirectory() as home, Product(Path(home)) as product:
        asyncio.run(_together(product, sound, 1))  # loads the models
        for count in options.sockets:
            heard = asyncio.run(_together(product, sound, count))
            figures[str(count)] = [each._asdict() for each in heard]
            finals = Spread.of([late_s for each in heard for late_s in each.finals_s])
            partials = sum(len(each.partials_s) for each in heard) / count
            done_s = max(each.done_s for each in heard)
            print(
                f"{count:>3} sockets: finals {finals.text()} s behind, {partials:.1f} partials each; "
                f"{figures['sound_s']:.1f} s of sound told after {done_s:.1f} s"
            )
            if count == AIMED_AT:
                aims.append(Aim(f"{count} sockets: finals behind", finals, MAX_BEHIND_S, False, " s"))
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


async def _together(product: Product, sound: bytes, count: int) -> list[Heard]:
    return await asyncio.gather(*(_one(product, sound, number * START_S) for number in range(count)))


async def _one(product: Product, sound: bytes, start_s: float) -> Heard:
    await asyncio.sleep(start_s)
    address, token = f"ws://127.0.0.1:{product.port}/ws/asr", f"bearer.{product.token}"
    async with connect(address, subprotocols=[token], max_queue=None) as socket:  # type: ignore[list-item]
        assert json.loads(await socket.recv())["type"] == "ready"
        began = time.perf_counter()
        reading = asyncio.ensure_future(_read(socket, began))
        piece = int(PIECE_S * RATE) * 2
        for number, at in enumerate(range(0, len(sound), piece), 1):
            await socket.send(sound[at : at + piece])
            await asyncio.sleep(max(0.0, began + number * PIECE_S - time.perf_counter()))
        await socket.send('{"type": "end"}')
        return await reading


async def _read(socket: Any, began: float) -> Heard:
    late: dict[str, list[float]] = {"final": [], "partial": []}
    done_s = 0.0
    try:
        while True:
            message = json.loads(await socket.recv())
            now_s = time.perf_counter() - began
            if message["type"] in late:
                late[message["type"]].append(now_s - message["end"])
            elif message["type"] == "done":
                done_s = now_s
            else:
                raise RuntimeError(message)
    except ConnectionClosed:
        return Heard(late["final"], late["partial"], done_s)


if __name__ == "__main__":
    main()
