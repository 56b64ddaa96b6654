"""The heavy part, in the torch profile's environment: export, quantise, compare. Speaks JSON lines with the command.

stdin: one line, a Job; its end is our end. stdout: {"event": "step", "item", "done", "total"}, at last
{"event": "result", …} or {"event": "error", "code", "message"}.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import BaseModel

from sidecar import process
from sidecar.catalogue.spec import Head, ModelSpec
from sidecar.errors import OptimiseError, SidecarError
from sidecar.optimise import compare, export, quantise
from sidecar.optimise.compare import Agreement, Array
from sidecar.runner.adapters.onnx import OnnxAdapter
from sidecar.runner.adapters.torch import TorchAdapter

MAX_THREADS = 8
CALIBRATION_TEXTS = 128
SENSITIVITY_TEXTS = 48
BATCH = 16
# Shares of the products that stay in fp32, tried in this order when int8 everywhere is too coarse.
KEPT_SHARES = (0.125, 0.25, 0.5)
Text = str | tuple[str, str]
STEPS = ("load", "export", "check the export", "calibrate", "quantise", "check int8", "measure")
_PLACE = {item: {"done": number, "total": len(STEPS)} for number, item in enumerate(STEPS)}


class Job(BaseModel):
    """What to optimise, where to write `onnx/` and `int8/`, and the texts to judge by."""

    spec: dict[str, Any]
    folder: Path
    device: str
    tolerant: bool = False
    """Keep the first int8 whatever it answers: for measuring weights that mean nothing."""

    texts: list[str]
    calibration: list[str]


def main(argv: list[str]) -> int:
    """`python -m sidecar optimise`: only `models optimise` starts it."""
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8")
    frames = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not reach the frames
    sys.stdout = sys.stderr
    process.die_with_parent()
    process.yield_to_host()

    def tell(event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=frames, flush=True)

    job = Job.model_validate_json(lines.readline())
    threading.Thread(target=_end_with, args=(lines,), daemon=True).start()
    try:
        tell("result", **Optimisation(job, tell).run())
    except SidecarError as error:
        tell("error", code=error.code, message=error.message)
        return 1
    except Exception as error:  # the traceback goes to the log, one line of it to the user
        traceback.print_exc()
        tell("error", code=OptimiseError.code, message=f"{type(error).__name__}: {error}"[:500])
        return 1
    return 0


def _end_with(lines: Any) -> None:
    lines.read()
    os._exit(1)


class Optimisation:
    """One run, from the original to the figures of its candidates."""

    def __init__(self, job: Job, tell: Any) -> None:
        self._job = job
        self._spec = ModelSpec.model_validate(job.spec)
        self._head = next(iter(self._spec.heads))
        self._texts = self._as_read(job.texts)
        self._calibration = self._as_read(job.calibration)[:CALIBRATION_TEXTS]
        self._threads = min(MAX_THREADS, process.usable_cores())
        self._tell = tell

    def run(self) -> dict[str, Any]:
        """The choice, and the figures that led to it."""
        self._step("load")
        original = TorchAdapter(self._spec, self._threads, self._job.device)
        original.load(lambda *_: None)
        self._window, self._decision = original.window, original.decision(self._head)
        expected = self._logits(original)
        self._step("export")
        export.export(original, self._spec, self._job.folder / "onnx")
        self._step("check the export")
        candidates = {"onnx": self._open("onnx")}
        agreements = {"onnx": compare.agreement(expected, self._logits(candidates["onnx"]), *self._decision)}
        if not agreements["onnx"].good:
            raise OptimiseError(
                f"model {self._spec.id!r}: the exported graph answers otherwise than the original "
                f"({100 * agreements['onnx'].same_label:.1f} % same label); nothing was kept"
            )
        kept_in_fp32 = self._find_int8(expected, candidates, agreements)
        self._step("measure")
        contestants = {"torch": original, **candidates}
        latencies = compare.measure(
            {name: _caller(adapter, self._head) for name, adapter in contestants.items()}, _typical(self._texts)
        )
        choice = compare.choose(agreements, latencies)
        return {
            "kept": choice.kept,
            "statement": choice.statement,
            "window": self._window,
            "device": original.device,
            "threads": self._threads,
            "agreement": {name: found._asdict() for name, found in agreements.items()},
            "latency": {name: {size: own._asdict() for size, own in by.items()} for name, by in latencies.items()},
            "speedup": {name: compare.speedups(latencies, name) for name in candidates},
            "kept_in_fp32": kept_in_fp32,
        }

    def _find_int8(
        self, expected: Array, candidates: dict[str, OnnxAdapter], agreements: dict[str, Agreement]
    ) -> list[str]:
        """Adds the first int8 candidate that agrees, else the last one tried; returns what had to stay in fp32."""
        self._step("calibrate")
        exact = onnx.load(str(self._job.folder / "onnx" / export.GRAPH))
        products = quantise.products(exact)
        if not products:
            return []
        feeds = (candidates["onnx"].feeds([text], self._head) for text in self._calibration)
        activity = quantise.watch(exact, {product.tensor for product in products}, feeds, self._threads)
        found: dict[int, float] = {}

        def fits(limit: int, keep: Sequence[str]) -> bool:
            self._step("quantise", f"{len(products) - len(keep)} of {len(products)} products")
            self._write("int8", quantise.quantise(exact, activity, limit, frozenset(keep)))
            self._step("check int8")
            candidates["int8"] = self._open("int8")
            agreements["int8"] = compare.agreement(expected, self._logits(candidates["int8"]), *self._decision)
            found[limit] = agreements["int8"].same_label
            return agreements["int8"].good or self._job.tolerant

        if any(fits(limit, []) for limit in quantise.WEIGHT_LIMITS):
            return []
        best = max(found, key=lambda limit: found[limit])
        ranking = self._by_sensitivity(exact, activity, best)
        keep: list[str] = []
        for share in KEPT_SHARES:
            keep = ranking[: round(share * len(products))]
            if fits(best, keep):
                break
        return keep

    def _by_sensitivity(self, exact: onnx.ModelProto, activity: dict[str, quantise.Activity], limit: int) -> list[str]:
        """Products by what they alone do to the logits when in int8, the worst first."""
        names = [product.name for product in quantise.products(exact)]
        texts = self._texts[:SENSITIVITY_TEXTS]
        exact_logits = _call(self._open("onnx"), self._head, texts)
        damage = {}
        for number, name in enumerate(names):
            self._tell("step", item=f"find sensitive layers ({number + 1} of {len(names)})", **_PLACE["quantise"])
            self._write("alone", quantise.quantise(exact, activity, limit, frozenset(names) - {name}))
            logits = _call(self._open("alone"), self._head, texts)
            damage[name] = float(np.abs(logits - exact_logits).mean())
        return sorted(names, key=lambda name: -damage[name])

    def _write(self, name: str, graph: onnx.ModelProto) -> None:
        folder = self._job.folder / name
        folder.mkdir(exist_ok=True)
        onnx.save(graph, str(folder / export.GRAPH))
        for path in ("tokenizer.json", "config.json"):
            (folder / path).write_bytes((self._job.folder / "onnx" / path).read_bytes())

    def _open(self, name: str) -> OnnxAdapter:
        """The adapter that will serve it, so that what is measured is what will run."""
        folder = self._job.folder / name
        head: Head = self._spec.heads[self._head].model_copy(update={"output": "logits"})
        values = {
            "folder": folder,
            "runtime": "onnx",
            "source": None,
            "window": self._window,
            "files": ({"path": export.GRAPH},),
        }
        spec = ModelSpec.model_validate(
            {**self._spec.model_dump(), **values, "heads": {self._head: head}, "capabilities": (self._head,)}
        )
        adapter = OnnxAdapter(spec, self._threads, "cpu")
        adapter.load(lambda *_: None)
        return adapter

    def _logits(self, adapter: Any) -> Array:
        return _call(adapter, self._head, self._texts)

    def _as_read(self, texts: Sequence[str]) -> list[Text]:
        """Texts, or for a head that reads pairs each with the one before it."""
        templates = (self._spec.heads[self._head].template, self._spec.heads[self._head].template_alone)
        if not any("{text_pair}" in str(template) for template in templates):
            return list(texts)
        return list(zip(("", *texts), texts, strict=False))

    def _step(self, item: str, detail: str = "") -> None:
        self._tell("step", item=f"{item} ({detail})" if detail else item, **_PLACE[item])


def _call(adapter: Any, head: str, texts: Sequence[Text]) -> Array:
    """Logits in the texts' order; like lengths go together, or most of the work would be padding."""
    order = sorted(range(len(texts)), key=lambda number: _length(texts[number]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    logits = np.concatenate([adapter.classify([texts[number] for number in part], head) for part in parts])
    return np.asarray(logits[np.argsort(order)])


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def _typical(texts: Sequence[Text]) -> list[Text]:
    """The half of medium length, so that one call is like the next."""
    ordered = sorted(texts, key=_length)
    return ordered[len(ordered) // 4 : 3 * len(ordered) // 4]


def _caller(adapter: Any, head: str) -> compare.Classify:
    return lambda texts: np.asarray(adapter.classify(texts, head))
