"""`python -m sidecar models optimise ID`: a torch classifier as ONNX, in int8 where that is as good and faster."""

import argparse
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.cli import Command
from sidecar.catalogue.profiles import Profiles
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import OptimiseError, SidecarError
from sidecar.optimise import child, made, texts
from sidecar.settings import Settings

TEXT = "make a torch classifier faster: ONNX, in int8 where that answers alike; kept only if it is faster"
EXIT_FAILED = 1


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="judge by these, one a line (default: ours, English)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with all figures on stdout")


def _run(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, cancel: threading.Event) -> int:
    settings = Settings.load()
    try:
        spec = _eligible(catalogue.usable(arguments.id))
        judged = texts.read(arguments.texts)
        with cache.exclusive(f"{spec.id}.optimise", cancel, lambda: None):
            result = _optimise(spec, judged, settings, cache, cancel)
    except SidecarError as error:
        if not arguments.json:
            raise
        print(json.dumps({"id": arguments.id, "error": {"code": error.code, "message": error.message}}))
        return EXIT_FAILED
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(_told(result)))
    return 0


def _eligible(spec: ModelSpec) -> ModelSpec:
    if spec.runtime != "torch" or not spec.heads:
        raise OptimiseError(
            f"model {spec.id!r} has the runtime {spec.runtime}; only text classifiers of runtime torch are optimised"
        )
    return spec


def _optimise(
    spec: ModelSpec, judged: texts.Texts, settings: Settings, cache: ModelCache, cancel: threading.Event
) -> dict[str, Any]:
    """Run the worker, keep what it chose. The figures, the original's `id`, and as `made` the new model's or None."""
    folder = made.work_folder(cache, spec)
    job = {
        "spec": spec.model_dump(mode="json"),
        "folder": str(folder),
        "device": "cpu" if spec.device == "cpu" else settings.device,
        "texts": judged.judged,
        "calibration": judged.calibration,
    }
    python = Profiles.of(settings).interpreter(spec, settings.device)
    try:
        result = child.run(python, job, _show, cancel, settings.log_dir / "optimise.log")
        kept = result["kept"]
        new = made.keep(cache, spec, kept, folder / kept, result["window"]) if kept else None
        if new is None:
            for kind in made.KINDS:
                made.forget(cache, made.made_id(spec, kind))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {"size_bytes": sum(file.size or 0 for file in new.files)} if new else {}
    return {"id": spec.id, "made": new.id if new else None, "capabilities": list(spec.capabilities), **sizes, **result}


def _show(step: child.Step) -> None:
    print(f"[{step.done + 1}/{step.total}] {step.item}", file=sys.stderr, flush=True)


def _told(result: dict[str, Any]) -> list[str]:
    """For people: figures first, then what that means."""
    batches = list(next(iter(result["latency"].values())))
    lines = [
        f"median ms of one call with {', '.join(batches)} texts ({result['threads']} threads, {result['device']}):"
    ]
    for name, by_batch in result["latency"].items():
        times = "  ".join(f"{by_batch[batch]['p50_ms']:8.1f}" for batch in batches)
        lines.append(f"  {name:<6}{times}{_agreement(result['agreement'].get(name))}")
    if kept := result["kept_in_fp32"]:
        lines.append(f"{len(kept)} sensitive products stay in fp32")
    if result["made"] is None:
        return [*lines, f"{result['id']}: {result['statement']}"]
    answers = ", ".join(result["capabilities"])
    return [
        *lines,
        f"{result['id']}: made {result['made']} ({result['size_bytes'] / 1e6:,.1f} MB); it goes before the original "
        f"for {answers}, in a running sidecar at once. `models rm {result['made']}` takes it back",
    ]


def _agreement(found: dict[str, Any] | None) -> str:
    if found is None:
        return "   (the original)"
    same, cosine = 100 * found["same_label"], found["cosine_mean"]
    return f"   {same:.1f} % same label on {found['texts']} texts, cosine of the logits {cosine:.4f}"


COMMAND = Command("optimise", TEXT, _declare, _run)
