"""`python -m sidecar models list|pull|rm|import|export|verify|why`."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.downloader import download
from sidecar.catalogue.exchange import export_folder, import_folder
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.terminal import Disk, Events, Terminal, megabytes
from sidecar.errors import ConfigError, DownloadCancelledError, SidecarError
from sidecar.settings import Settings

EXIT_FAILED = 1
EXIT_CANCELLED = 130


class Command(NamedTuple):
    """A command that another part adds. `run` gets the arguments, the catalogue, its cache and a wish to stop."""

    name: str
    text: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Catalogue, ModelCache, threading.Event], int]


def main_models(argv: Sequence[str], more: Sequence[Command] = ()) -> int:
    """0 done, 1 not (one line on stderr says what, why and the cure), 2 usage, 130 cancelled."""
    arguments = _parser(more).parse_args(argv)
    catalogue = Catalogue.of(Settings.load())
    assert catalogue.cache is not None
    cancel = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM) if arguments.tidies else ():
        signal.signal(number, lambda _number, _frame: cancel.set())
    try:
        code: int = arguments.action(arguments, catalogue, catalogue.cache, cancel)
        return code
    except KeyboardInterrupt:
        print("\nml-sidecar: stopped", file=sys.stderr)
        return EXIT_CANCELLED
    except ConfigError:
        raise
    except SidecarError as error:
        print(f"ml-sidecar: {error.message}", file=sys.stderr)
        return EXIT_CANCELLED if isinstance(error, DownloadCancelledError) else EXIT_FAILED


def _parser(more: Sequence[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sidecar models", allow_abbrev=False, description="Models on this computer.")
    names = ("list", "pull", "rm", "import", "export", "verify", "why", *(each.name for each in more))
    commands = parser.add_subparsers(required=True, metavar="|".join(names))

    def command(name: str, action: Callable[..., int], text: str, tidies: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(action=action, tidies=tidies)  # whether it ends by itself when `cancel` is set
        return one

    listing = command("list", _list, "all models that the catalogue knows")
    listing.add_argument("--json", action="store_true", help="one JSON array")
    pull = command("pull", _pull, "download models; goes on where an earlier try ended", tidies=True)
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
    for each in more:
        each.declare(command(each.name, each.run, each.text, tidies=True))
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
        "download_mb": spec.download_mb or None,
        "memory_mb": spec.memory_mb,
        "profile": spec.profile,
        "runtime": spec.runtime,
        "licence": spec.licence,
        "languages": list(spec.languages),
        "revision": cache.revision(spec),
        "repo": spec.source.origin if spec.source else None,
    }


def _list(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    rows = [describe(spec, catalogue, cache) for spec in catalogue.specs.values()]
    rows.sort(key=lambda row: (row["capabilities"], row["id"]))
    _tell_faults(catalogue)
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
                "none" if local and _is_unsupported(row) else files.get(row["state"], "in part"),
                _size(row),
                row["profile"],
                "yes" if row["usable"] else "no runtime" if _is_unsupported(row) else "no",
                row["licence"],
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _tell_faults(catalogue: Catalogue, model_id: str | None = None) -> None:
    """Entries that were left out; those of one id only, if it is given."""
    for fault in catalogue.faults:
        if model_id in (None, fault.id):
            print(f"ml-sidecar: {fault.reason}", file=sys.stderr)


def _size(row: dict[str, Any]) -> str:
    if row["size"] is None and row["download_mb"]:
        return f"~ {megabytes(row['download_mb'] * 10**6)}"
    return "-" if row["size"] is None and row["repo"] is None else megabytes(row["size"])


def _is_unsupported(row: dict[str, Any]) -> bool:
    return any(obstacle["kind"] == "runtime" for obstacle in row["obstacles"])


def _pull(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, cancel: threading.Event) -> int:
    chosen = [catalogue.get(model_id) for model_id in arguments.ids]
    for spec in chosen:
        catalogue.check_supported(spec)
    for spec in chosen:
        _agree(arguments, spec, cache)
        show = Events() if arguments.events else Terminal()
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
        print(f"{spec.id}: {megabytes(freed)} freed")
    if arguments.unused:
        garbage = cache.collect(catalogue.specs.values(), {fault.id for fault in catalogue.faults})
        for path in garbage.paths:
            print(f"deleted {path}")
        print(f"{megabytes(garbage.size_bytes)} freed")
    return 0


def _import(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    if arguments.accept_licence or arguments.allow_pickle:
        if not arguments.id:
            raise ConfigError("models import: --accept-licence and --allow-pickle are for one model: say --id ID")
        _agree(arguments, catalogue.get(arguments.id), cache)
    show = Terminal()
    ids = import_folder(catalogue, arguments.folder, arguments.id, lambda spec: Disk(spec.id, None, show))
    show.end()
    for model_id in ids:
        print(f"{model_id}: {cache.folder(catalogue.get(model_id))}")
    return 0


def _export(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    for spec in [catalogue.get(model_id) for model_id in arguments.ids]:
        show = Terminal()
        folder = export_folder(spec, cache, arguments.to, Disk(spec.id, cache.size_bytes(spec), show))
        show.end()
        print(f"{spec.id}: {folder}")
    return 0


def _verify(arguments: argparse.Namespace, catalogue: Catalogue, cache: ModelCache, _: threading.Event) -> int:
    chosen = [catalogue.get(model_id) for model_id in arguments.ids]
    code = 0
    for spec in chosen or [spec for spec in catalogue.specs.values() if cache.state(spec) != "absent" and spec.files]:
        show = Terminal()
        faults = cache.verify(spec, Disk(spec.id, cache.size_bytes(spec), show, reading=True))
        show.end()
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
    _tell_faults(catalogue, spec.id)
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
