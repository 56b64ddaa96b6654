"""A text classifier of DistilBERT's size as torch, ONNX and int8: direct and through the whole product over HTTP.

Run as `python -m benchmarks.text`; see benchmarks/README.md. Needs the torch profile.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.load import PATH, ROOT, Measured, Target, read_texts, require_wrk, run_wrk
from benchmarks.peers import contestants
from benchmarks.peers.environment import plot_python
from benchmarks.report import Aim, Spread
from sidecar.catalogue.profiles import Profiles
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ProfileMissingError
from sidecar.optimise import child, made, texts
from sidecar.settings import Settings
from tests.product import Product
from tests.torch_profile import LABELS, link_torch, make_classifier

NAMES = ("torch", "onnx", "int8")
SIZES = (1, 8, 10, 16)
# DistilBERT's: 66 million parameters. The weights are random: a time does not depend on what they mean.
SHAPE = {"hidden": 768, "layers": 6, "heads": 12, "vocabulary": 30_522, "positions": 512}
BATCH_PATH = "/emotion/detect/batch"
# Int8 against torch in the latency of so many at once; and how much slower the slowest in a hundred may be.
AIMS = {8: 2.3, 16: 2.5}
SPREAD_AIM = 2.0

Rows = dict[str, dict[str, dict[int, dict[str, float]]]]  # way, name, size -> p50_ms, p95_ms, p99_ms, per_s


def main() -> None:
    options = _options()
    wrk = require_wrk()
    contestants.forget_python_settings()
    python = _torch_python(options.torch)
    report.print_machine()
    sentences = _sentences()
    with tempfile.TemporaryDirectory(prefix="sidecar-benchmark-") as folder:
        specs, agreement = _make(Path(folder), python, options.model)
        rows = _direct(python, specs, sentences, options)
        rows |= _over_http(Path(folder), python, specs, sentences, options, wrk)
    aims = _aims(rows)
    _print_table(rows)
    same = {name: f"{100 * found['same_label']:.1f} % same label" for name, found in agreement.items()}
    weights = f"weights of {options.model}" if options.model else "random weights, which have no opinion to agree with"
    print(f"\nagreement with torch ({weights}): {same}")
    report.print_aims(aims)
    shape = options.model or "DistilBERT's shape, random weights"
    title = f"{shape}; {options.threads} threads; {report.machine()['processor']}"
    figures = {"title": title, "latency": rows, "agreement": agreement, "sizes": SIZES, "threads": options.threads}
    report.write_json(options.json, figures, aims)
    if options.plot:
        _plot(options.plot, figures)


def _options() -> argparse.Namespace:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="a classifier of transformers instead of random weights"
    )
    parser.add_argument(
        "--torch", type=Path, metavar="PYTHON", help="interpreter, if not that of the installed profile"
    )
    parser.add_argument("--rounds", type=int, default=40, help="direct calls of each size")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of each direct concurrent and each HTTP measurement"
    )
    parser.add_argument("--turns", type=int, default=3, help="times that every HTTP measurement is taken")
    parser.add_argument("--threads", type=int, default=contestants.default_cores(), help="of every model")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the latencies (png or svg)")
    return parser.parse_args()


def _torch_python(given: Path | None) -> Path:
    try:
        return given or Profiles.of(Settings.load()).python("torch")
    except ProfileMissingError as error:
        raise SystemExit(error.message) from None


def _sentences() -> list[str]:
    """Real ones of medium length, so that one request is like the next."""
    ordered = sorted(read_texts(), key=len)
    return ordered[len(ordered) // 4 : 3 * len(ordered) // 4]


def _make(folder: Path, python: Path, model: Path | None) -> tuple[dict[str, ModelSpec], dict[str, Any]]:
    """The three entries, by the code of `models optimise`, and how far they agree."""
    source = model or folder / "model"
    if model is None:
        make_classifier(python, source, **SHAPE)
    weights = [{"path": path.name, "pickle": True} for path in source.glob("pytorch_model*.bin")]
    values: dict[str, Any] = {
        "id": "bench",
        "title": "bench",
        "capabilities": ["emotion"],
        "runtime": "torch",
        "licence": "none",
        "profile": "torch",
        "folder": source,
        "files": weights,
        "heads": {"emotion": {"labels": LABELS if model is None else ()}},
    }
    spec = ModelSpec.model_validate({**values, "batch": {"max_items": max(SIZES)}})
    judged = texts.read()
    job = {"spec": spec.model_dump(mode="json"), "folder": str(folder), "device": "cpu", "tolerant": model is None}
    job |= {"texts": judged.judged, "calibration": judged.calibration}
    result = child.run(
        python, job, lambda step: print(f"  {step.item}", flush=True), threading.Event(), folder / "optimise.log"
    )
    specs = {"torch": spec}
    for kind in ("onnx", "int8"):
        files = tuple({"path": path.name} for path in (folder / kind).iterdir())
        changes = {"id": f"bench-{kind}", "runtime": "onnx", "profile": "base", "folder": folder / kind, "files": files}
        specs[kind] = ModelSpec.model_validate({**spec.model_dump(), **changes, "window": result["window"]})
    return specs, result["agreement"]


def _direct(python: Path, specs: dict[str, ModelSpec], sentences: list[str], options: argparse.Namespace) -> Rows:
    job = {name: getattr(options, name) for name in ("rounds", "seconds", "threads")}
    job |= {"specs": {name: spec.model_dump(mode="json") for name, spec in specs.items()}, "texts": sentences}
    done = subprocess.run(
        [str(python), "-m", "benchmarks.text_direct"],
        input=json.dumps({**job, "sizes": SIZES}),
        # As runners have it (sidecar/settings.py): threads that spin while they wait would be in each other's way.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    rows: Rows = {}
    for way, by_name in found.items():
        rows[way] = {name: {int(size): _row(took) for size, took in by.items()} for name, by in by_name.items()}
        for by in rows[way].values():
            for size, row in by.items():
                row["per_s"] = 1000 * size / row["p50_ms"]
    return rows


def _row(took_ms: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took_ms, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}


def _over_http(
    folder: Path,
    python: Path,
    specs: dict[str, ModelSpec],
    sentences: list[str],
    options: argparse.Namespace,
    wrk: str,
) -> Rows:
    """The whole product, all three loaded; every measurement in turn, and all of it `turns` times."""
    home = folder / "home"
    link_torch(home, python)
    (home / "catalogue").mkdir()
    for name, spec in specs.items():
        (home / "catalogue" / f"{name}.toml").write_text(_toml(spec), encoding="utf-8")
    seen: dict[str, dict[str, dict[int, list[Measured]]]] = {"http": {}, "http batch": {}}
    with Product(home, wait=True, SIDECAR_THREADS=str(options.threads), SIDECAR_KEEP_ALIVE="-1") as product:
        target = Target(product.port, product.token, product.process.pid)
        for spec in specs.values():
            product.call("POST", f"/models/{spec.id}/load", timeout_s=120)
        for turn in range(options.turns):
            for size in SIZES:
                for name in NAMES[turn % 3 :] + NAMES[: turn % 3]:
                    for way, clients, batch, path in (("http", size, 0, PATH), ("http batch", 1, size, BATCH_PATH)):
                        bodies = _bodies(folder / "bodies.jsonl", sentences, specs[name].id, batch)
                        run_wrk(wrk, target, bodies, clients, 1.0, path)
                        one = run_wrk(wrk, target, bodies, clients, options.seconds, path)
                        if one.failed or one.broken:
                            raise SystemExit(f"{name}, {way}, {size}: {one.failed} not 200, {one.broken} broken")
                        if not one.rate:
                            said = f"no answer within {options.seconds:g} s; give it more (--seconds)"
                            raise SystemExit(f"{name}, {way}, {size}: {said}")
                        seen[way].setdefault(name, {}).setdefault(size, []).append(one)
    return {
        way: {name: {size: _median(runs, way, size) for size, runs in by.items()} for name, by in by_name.items()}
        for way, by_name in seen.items()
    }


def _toml(spec: ModelSpec) -> str:
    values = spec.model_dump(mode="json", exclude_defaults=True, exclude={"folder"})
    values["source"] = {"path": str(spec.folder)}
    return "\n".join(f"{key} = {made.toml(value)}" for key, value in values.items()) + "\n"


def _bodies(path: Path, sentences: list[str], model: str, batch: int) -> Path:
    """Bodies of single texts, or with `batch` of so many each."""
    rows: list[dict[str, Any]] = [{"text": text, "model": model} for text in sentences]
    if batch:
        starts = range(0, len(sentences) - batch, batch)
        rows = [{"texts": sentences[start : start + batch], "model": model} for start in starts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _median(runs: list[Measured], way: str, size: int) -> dict[str, float]:
    per_request = size if way != "http" else 1
    row = {key: statistics.median(getattr(run, key) for run in runs) for key in ("p50_ms", "p95_ms", "p99_ms")}
    return row | {"per_s": statistics.median(run.rate * per_request for run in runs)}


def _aims(rows: Rows) -> list[Aim]:
    aims = []
    for way, by_name in rows.items():
        for size, limit in AIMS.items():
            gain = by_name["torch"][size]["p50_ms"] / by_name["int8"][size]["p50_ms"]
            aims.append(Aim(f"{way}, {size}: torch / int8 (median)", Spread.of([gain]), limit, True, "×"))
        if way == "concurrent":  # threads that get into each other's way: what the product's batches are there to avoid
            continue
        spread = max(row["p99_ms"] / row["p50_ms"] for row in by_name["int8"].values())
        aims.append(Aim(f"{way}: int8, 99 % / median, the worst", Spread.of([spread]), SPREAD_AIM, False, "×"))
    return aims


def _print_table(rows: Rows) -> None:
    for way, by_name in rows.items():
        print(f"\n{way}: median, 95 %, 99 % (ms); texts/s; torch's median to this")
        for size in SIZES:
            for name in NAMES:
                row = by_name[name][size]
                gain = by_name["torch"][size]["p50_ms"] / row["p50_ms"]
                times = "  ".join(f"{row[key]:8.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "per_s"))
                print(f"  {size:>3}  {name:<6}{times}   {gain:5.2f}×")


def _plot(target: Path, figures: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump({"figures": figures}, file)
        file.flush()
        script = str(Path(__file__).with_name("plot.py"))
        subprocess.run([str(plot_python()), script, file.name, str(target)], check=True)
    print(f"plot: {target}")


if __name__ == "__main__":
    main()
