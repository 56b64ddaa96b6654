"""`python -m sidecar models list|pull|rm|import|export|verify|why`."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.downloader import DownloadProgress, download
from sidecar.catalogue.exchange import export_folder, import_folder
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ConfigError, DownloadCancelledError, SidecarError
from sidecar.settings import Settings

EXIT_FAILED = 1
EXIT_CANCELLED = 130


def main_models(argv: Sequence[str]) -> int:
    """0 done, 1 not (one line on stderr says what, why and the cure), 2 usage, 130 cancelled."""
    arguments = _parser().parse_args(argv)
    catalogue = Catalogue.of(Settings.load())
    assert catalogue.cache is not None
    cancel = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: cancel.set())
    try:
        code: int = arguments.action(arguments, catalogue, catalogue.cache, cancel)
        return code
    except ConfigError:
        raise
    except SidecarError as error:
        print(f"ml-sidecar: {error.message}", file=sys.stderr)
        return EXIT_CANCELLED if isinstance(error, DownloadCancelledError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sidecar models", allow_abbrev=False, description="Models on this computer.")
    commands = parser.add_subparsers(required=True, metavar="list|pull|rm|import|export|verify|why")

    def command(name: str, action: Callable[..., int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(action=action)
        return one

    listing = command("list", _list, "all models that the catalogue knows")
    listing.add_argument("--json", action="store_true", help="one JSON array")
    pull = command("pull", _pull, "download models; goes on where an earlier try ended")
    pull.add_argument("ids", nargs="+", metavar="ID")
    pull.add_argument("--accept-licence", action="store_true", help="agree to the licence that the model asks about")
    pull.add_argument("--allow-pickle", action="append", default=[], metavar="FILE", help="allow this very pickle")
    pull.add_argument("--update", action="store_true", help="resolve branch or tag anew")
    pull.add_argument("--events", action="store_true", help="progress as one JSON object a line on stdout")
    remove = command("rm", _remove, "delete weights")
    remove.add_argument("ids", nargs="*", metavar="ID")
    remove.add_argument("--forget", action="store_true", help="forget revision and hashes too: trust the next one anew")
    remove.add_argument("--unused", action="store_true", help="revisions and parts that nothing refers to")
    bring = command("import", _import, "take models from a folder, verified")
    bring.add_argument("folder", type=Path, metavar="DIR")
    bring.add_argument("--id", help="which model it is, where the folder does not say")
    bring.add_argument("--accept-licence", action="store_true", help="agree to the licence that the model asks about")
    bring.add_argument("--allow-pickle", action="append", default=[], metavar="FILE", help="allow this very pickle")
    export = command("export", _export, "copy models to a folder, for a computer without the network")
    export.add_argument("ids", nargs="+", metavar="ID")
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    verify = command("verify", _verify, "read every byte and compare with the hashes")
    verify.add_argument("ids", nargs="*", metavar="ID")
    why = command("why", _why, "why a model answers, or does not")
    why.add_argument("id", metavar="ID")
    return parser


def describe(spec: ModelSpec, catalogue: Catalogue, cache: ModelCache) -> dict[str, Any]:
    """One row of `list --json`."""
    obstacles = catalogue.obstacles(spec)
    return {
        "id": spec.id,
        "title": spec.title,
        "capabilities": list(spec.capabilities),
        "state": cache.state(spec),
        "usable": not obstacles,
        "obstacles": [obstacle._asdict() for obstacle in obstacles],
        "size": cache.size_bytes(spec),
        "memory_mb": spec.memory_mb,
        "profile": spec.profile,
        "runtime": spec.runtime,
        "licence": spec.licence,
        "languages": list(spec.languages),
        "revision": cache.revision(spec),
        "repo": spec.source.repo if spec.source else None,
    }


def _list(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    rows = [describe(spec, catalogue, cache) for spec in catalogue.specs.values()]
    rows.sort(key=lambda row: (row["capabilities"], row["id"]))
    if arguments.json:
        print(json.dumps(rows))
        return 0
    table = [("ID", "CAPABILITIES", "FILES", "SIZE", "PROFILE", "USABLE", "LICENCE")]
    for row in rows:
        local = row["repo"] is None
        files = {"complete": "built in" if local else "here", "absent": "missing" if local else "not here"}
        table.append(
            (
                row["id"],
                ", ".join(row["capabilities"]),
                files.get(row["state"], "in part"),
                _megabytes(row["size"]),
                row["profile"],
                "yes" if row["usable"] else "no",
                row["licence"],
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _pull(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, cancel: threading.Event) -> int:
    for spec in [catalogue.get(model_id) for model_id in arguments.ids]:
        _agree(arguments, spec, cache)
        show = _Events() if arguments.events else _Terminal()
        folder = download(spec, cache, show, cancel, update=arguments.update)
        show.end()
        print(f"{spec.id}: {folder}", file=sys.stderr if arguments.events else sys.stdout)
    return 0


def _agree(arguments: argparse.Namespace, spec: ModelSpec, cache: ModelCache) -> None:
    if arguments.accept_licence or arguments.allow_pickle:
        cache.lockfile.agree(spec.id, licence=arguments.accept_licence, pickles=tuple(arguments.allow_pickle))


def _remove(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    if not arguments.ids and not arguments.unused:
        raise ConfigError("models rm: name the models, or say --unused")
    for spec in [catalogue.get(model_id) for model_id in arguments.ids]:
        freed = cache.remove(spec)
        if arguments.forget:
            cache.lockfile.forget(spec.id)
        print(f"{spec.id}: {_megabytes(freed)} freed")
    if arguments.unused:
        garbage = cache.collect(catalogue.specs.values())
        for path in garbage.paths:
            print(f"deleted {path}")
        print(f"{_megabytes(garbage.size_bytes)} freed")
    return 0


def _import(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, cancel: threading.Event) -> int:
    if arguments.accept_licence or arguments.allow_pickle:
        if not arguments.id:
            raise ConfigError("models import: --accept-licence and --allow-pickle are for one model: say --id ID")
        _agree(arguments, catalogue.get(arguments.id), cache)
    for model_id in import_folder(catalogue, arguments.folder, arguments.id, cancel=cancel):
        print(f"{model_id}: {cache.folder(catalogue.get(model_id))}")
    return 0


def _export(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    for spec in [catalogue.get(model_id) for model_id in arguments.ids]:
        print(f"{spec.id}: {export_folder(spec, cache, arguments.to)}")
    return 0


def _verify(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    chosen = [catalogue.get(model_id) for model_id in arguments.ids]
    code = 0
    for spec in chosen or [spec for spec in catalogue.specs.values() if cache.state(spec) != "absent" and spec.files]:
        faults = cache.verify(spec)
        cure = f"`models pull {spec.id}` fetches it again" if spec.is_hub else "install the product again"
        for fault in faults:
            print(f"{spec.id}: {fault}; {cure}")
        code = EXIT_FAILED if faults else code
        if not faults:
            print(f"{spec.id}: whole")
    return code


def _why(arguments: argparse.Namespace, catalogue: Catalogue, _: ModelCache, __: threading.Event) -> int:
    spec = catalogue.get(arguments.id)
    print(f"{spec.id}: {spec.title}")
    obstacles = catalogue.obstacles(spec)
    for kind, reason, cure in obstacles:
        print(f"  cannot answer ({kind}): {reason}" + (f"; cure: {cure}" if cure else ""))
    if spec.opt_in:
        print(f"  licence {spec.licence}: {spec.opt_in}")
    for capability in spec.capabilities:
        print(f"  {capability}: {_place(spec, capability, catalogue, bool(obstacles))}")
    return 0


def _place(spec: ModelSpec, capability: str, catalogue: Catalogue, blocked: bool) -> str:
    usable = catalogue.for_capability(capability)
    if usable and usable[0].id == spec.id:
        return f"it answers; of {len(usable)} usable it has the highest preference ({spec.preference})"
    best = f"{usable[0].id} (preference {usable[0].preference})" if usable else "nothing"
    if blocked:
        would = all(spec.preference >= other.preference for other in usable)
        return f"{best} answers; without the obstacles above it would {'' if would else 'still not '}be this one"
    return f"{best} answers, it comes before this one (preference {spec.preference}); pin this one by `model`"


class _Terminal:
    """Progress for people: one line, rewritten in place on a terminal, a new one every tenth part in a log."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said = ""
        self._shown = False

    def __call__(self, now: DownloadProgress) -> None:
        line = f"{now.item}: {now.state}"
        if now.state in ("downloading", "verifying"):
            percent = f" {100 * now.done // now.total:3d}%" if now.total else ""
            eta = "" if now.eta_s is None else f", {now.eta_s:,.0f} s left"
            of = f" of {_megabytes(now.total)}" if now.total else ""
            line += f"{percent} {_megabytes(now.done)}{of}, {now.rate / 1e6:,.1f} MB/s{eta}"
        if self._live:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self._shown = True
            return
        mark = f"{now.state} {10 * now.done // now.total if now.total else ''}"
        if mark != self._said:
            self._said = mark
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print(file=sys.stderr)


class _Events:
    """Progress for programs."""

    def __call__(self, now: DownloadProgress) -> None:
        print(json.dumps({"event": "progress", **asdict(now)}), flush=True)

    def end(self) -> None:
        """Nothing is left open."""


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
