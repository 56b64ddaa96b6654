"""Decoding in a process of its own: what it adds to FFmpeg in the server's, and what an hour does to everybody else.

Run as `python -m benchmarks.decoding`; see benchmarks/README.md.
"""

import argparse
import asyncio
import io
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop

from benchmarks import report
from benchmarks.report import Aim, Spread
from sidecar.capabilities import BY_NAME
from sidecar.capabilities.vad import VadRequest
from sidecar.catalogue.catalogue import Catalogue
from sidecar.inference.pool import Pool
from sidecar.runner.adapters.ffmpeg import decode
from sidecar.server.audio import LocalFile, Upload, read_audio
from sidecar.server.decoder import Decoder
from sidecar.settings import ROOT, Settings
from tests.sound import RATE, encode, wav

FORMATS = {
    "flac": ("flac", "flac", 44_100, "stereo"),
    "mp3": ("mp3", "libmp3lame", 44_100, "stereo"),
    "opus": ("ogg", "libopus", 48_000, "mono"),
    "m4a": ("ipod", "aac", 44_100, "stereo"),
    "webm": ("webm", "libopus", 48_000, "mono"),
}
MAX_RATIO_10_S = 1.1
MAX_ADDED_1_S = 0.003
MAX_PAUSE_MS = 20.0
MAX_PEAK_MIB = 300.0
HOUR_S = 3600


class World(NamedTuple):
    """What the server has of it, without HTTP."""

    settings: Settings
    pool: Pool
    decoder: Decoder


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 60.0])
    options = parser.parse_args()
    report.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        figures, aims = uvloop.run(_measured(Path(folder), options))
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


async def _measured(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Aim]]:
    settings = Settings.load(audio_folders=str(folder))
    pool = Pool(Catalogue([ROOT / "models" / "catalogue"]), settings, lambda *_: None, lambda line: None)
    world = World(settings, pool, Decoder(pool))
    await world.decoder.slot.ensure_ready()
    try:
        hour = await _hour(folder, world)
        pairs = {
            f"{name} {seconds:g} s": await _pairs(world, name, seconds, options.rounds)
            for seconds in options.seconds
            for name in FORMATS
        }
    finally:
        await pool.close()
    aims = [
        Aim("longest pause of the event loop, an hour", Spread.of(hour["pauses_ms"]), MAX_PAUSE_MS, False, " ms"),
        Aim("added memory at its peak, an hour", Spread.of(hour["peaks_mib"]), MAX_PEAK_MIB, False, " MiB"),
    ]
    for name, (ours, bare) in pairs.items():
        print(f"{name:<12} here {Spread.of(bare).text(1)}, in its process {Spread.of(ours).text(1)} ms")
        if name.endswith(" 10 s"):
            aims.append(Aim(f"{name}: its time to that in process", report.ratios(ours, bare), MAX_RATIO_10_S, False))
        elif name.endswith(" 1 s"):
            added = Spread.of([one - other for one, other in zip(ours, bare, strict=True)])
            aims.append(Aim(f"{name}: added", added, MAX_ADDED_1_S * 1000, False, " ms"))
    return {"hour": hour, "pairs_ms": pairs}, aims


def _sound(seconds: float, rate: int) -> Any:
    times = np.arange(int(seconds * rate), dtype=np.float32) / rate
    noise = np.random.default_rng(1).normal(0, 0.03, len(times)).astype(np.float32)
    return 0.2 * np.sin(1400 * times) * (1 + np.sin(20 * times)) + noise


async def _pairs(world: World, name: str, seconds: float, rounds: int) -> tuple[list[float], list[float]]:
    container, codec, rate, layout = FORMATS[name]
    data = encode(_sound(seconds, rate), container, codec, rate, layout)
    ours, bare = [], []
    for turn in range(rounds + 2):
        here = _timed(asyncio.to_thread(lambda: list(decode(io.BytesIO(data), 4000.0))))
        there = _timed(read_audio(Upload(io.BytesIO(data)), world.settings, world.decoder))
        first, second = (here, there) if turn % 2 else (there, here)
        took = [await first, await second]
        if turn >= 2:  # the first ones warm up
            bare.append(took[0 if turn % 2 else 1])
            ours.append(took[1 if turn % 2 else 0])
    return ours, bare


async def _timed(work: Coroutine[Any, Any, Any]) -> float:
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1000


async def _hour(folder: Path, world: World) -> dict[str, list[float]]:
    """An hour of speech-like sound, decoded and handed to a model's runner, as WAV and as FLAC, three times each."""
    sound = np.tile(_sound(60.0, RATE), HOUR_S // 60)
    (folder / "hour.wav").write_bytes(wav(sound))
    (folder / "hour.flac").write_bytes(encode(sound, "flac", "flac", RATE))
    del sound
    pauses_ms, peaks_mib = [], []
    spec = world.pool.resolve("vad")
    await world.pool.slot(spec).ensure_ready()
    for name in ("hour.wav", "hour.flac") * 3:
        seen = await _watched(_through(world, folder / name))
        pauses_ms.append(seen[0])
        peaks_mib.append(seen[1])
    return {"pauses_ms": pauses_ms, "peaks_mib": peaks_mib}


async def _through(world: World, path: Path) -> None:
    request = VadRequest()
    request.hear((await read_audio(LocalFile(str(path)), world.settings, world.decoder)).samples)
    spec = world.pool.resolve("vad")
    await world.pool.infer(spec, "vad", BY_NAME["vad"].prepare(request), 1)


async def _watched(work: Coroutine[Any, Any, None]) -> tuple[float, float]:
    """The longest time (ms) that the loop's thread computed without a break, and the added memory (MiB)."""
    process = psutil.Process()
    before, most, longest = process.memory_info().rss, 0, 0.0
    task = asyncio.ensure_future(work)
    while not task.done():
        begun = time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.thread_time() - begun)
        most = max(most, process.memory_info().rss)
    await task
    return longest * 1000, (most - before) / 2**20


if __name__ == "__main__":
    main()
