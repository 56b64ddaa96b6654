"""Speech recognition: what the product adds to the same Whisper in one process, and how good the embedded model is.

The Whisper has the size of `base` and random weights: it says the same of every window, at the price of a real one. The
embedded model hears 100 telephone prompts of Debian's asterisk-core-sounds-en-wav.

Run as `python -m benchmarks.speech`; see benchmarks/README.md.
"""

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from faster_whisper import WhisperModel

from benchmarks import report
from benchmarks.report import Aim, Spread
from sidecar.process import usable_cores
from tests.product import Product
from tests.prompts import load, plain, prompts
from tests.sound import RATE, wav
from tests.tiny_whisper import write_whisper

MAX_OVERHEAD = 1.05
WIDTH, LAYERS = 512, 6  # of Whisper base
TOML = """
id = "sized-like-base"
title = "random weights"
capabilities = ["asr"]
runtime = "ctranslate2"
licence = "none"
preference = 100
folder = "."
files = [{ path = "model.bin" }]
"""


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the recording of the comparison")
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args()
    report.print_machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = {"overhead": _overhead(Path(folder), options), "embedded": _embedded(Path(folder), options)}
    pairs = figures["overhead"]
    aims = [
        Aim(
            "time of a transcription to that in process",
            report.ratios(pairs["ours_s"], pairs["bare_s"]),
            MAX_OVERHEAD,
            False,
        )
    ]
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


def _overhead(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    model = write_whisper(folder / "model", width=WIDTH, layers=LAYERS)
    (model / "base.toml").write_text(TOML, encoding="utf-8")
    sound = np.concatenate([load(each) for each in prompts(60)])[: int(options.seconds * RATE)]
    path = folder / "speech.wav"
    path.write_bytes(wav(sound))
    bare = WhisperModel(str(model), device="cpu", compute_type="auto", cpu_threads=min(8, usable_cores()))
    figures: dict[str, Any] = {"ours_s": [], "bare_s": [], "sound_s": len(sound) / RATE}
    with Product(folder / "home", SIDECAR_CATALOGUE=str(model), SIDECAR_AUDIO_FOLDERS=str(folder)) as product:
        for turn in range(options.rounds + 1):
            bare_s, bare_text = _timed(lambda: _in_process(bare, path))
            ours_s, ours_text = _timed(lambda: _ask(product, path)["text"])
            assert ours_text == bare_text, "the answers differ"
            if turn:  # the first one warms up
                figures["bare_s"].append(bare_s)
                figures["ours_s"].append(ours_s)
    for name in ("bare_s", "ours_s"):
        print(f"{name:<10} {Spread.of(figures[name]).text(3)} s for {figures['sound_s']:.0f} s of speech")
    return figures


def _in_process(model: WhisperModel, path: Path) -> str:
    segments, _ = model.transcribe(str(path), vad_filter=True)
    return "".join(segment.text for segment in segments).strip()


def _timed(work: Any) -> tuple[float, str]:
    started = time.perf_counter()
    answer: str = work()
    return time.perf_counter() - started, answer


def _ask(product: Product, path: Path) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", product.port, timeout=600)
    headers = {"Authorization": f"Bearer {product.token}"}
    connection.request("POST", "/asr/transcribe", json.dumps({"audio_path": str(path)}), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def _embedded(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    chosen = prompts(options.prompts)
    said, factors = [], []
    with Product(folder / "embedded", SIDECAR_AUDIO_FOLDERS=str(chosen[0].path.parent)) as product:
        _ask(product, chosen[0].path)
        for prompt in chosen:
            took_s, text = _timed(lambda prompt=prompt: json.dumps(_ask(product, prompt.path)))
            answer = json.loads(text)
            said.append(plain(answer["text"]))
            factors.append(took_s / answer["duration_s"])
    rate = jiwer.wer([plain(prompt.text) for prompt in chosen], said)
    spread = Spread.of(factors)
    print(f"{answer['model']}: word error rate {rate:.3f} on {len(chosen)} prompts, real-time factor {spread.text(3)}")
    return {"word_error_rate": rate, "real_time_factors": factors}


if __name__ == "__main__":
    main()
