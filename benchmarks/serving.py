"""Throughput of POST /emotion/detect: ours against the bare model, LitServe and mosec, all with the same model.

Run as `python -m benchmarks.serving`; see benchmarks/README.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import footprint, report
from benchmarks.load import Measured, Target, mix_lengths, read_texts, require_wrk, run_wrk, write_bodies
from benchmarks.peers import contestants
from benchmarks.peers.contestants import CONTESTANTS, LITSERVE_0, LITSERVE_10, MOSEC, OURS, Setup
from benchmarks.peers.environment import peers_python
from benchmarks.report import Aim, Spread

BARE = "bare model"
BARE_SINGLE = "bare model, batch 1"
BARE_PARALLEL = "bare model, batch 1 per core"
BARES = (BARE, BARE_SINGLE, BARE_PARALLEL)
SETTLE_S = 2.0

Rounds = dict[int, dict[str, list[Measured]]]  # by concurrency, then by contestant


def main() -> None:
    options = _options()
    wrk = require_wrk()
    contestants.forget_python_settings()
    setup = Setup(peers_python(), options.cores, options.litserve_queue)
    report.print_machine()
    print(f"{options.cores} cores each, {options.rounds} rounds of {options.seconds:g} s")
    texts = read_texts()
    rounds: Rounds = {clients: {} for clients in options.clients}
    idle: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            seed = options.seed + turn
            chosen = mix_lengths(texts, seed) if options.mix == "lengths" else texts
            bodies = write_bodies(Path(folder) / f"{turn}.jsonl", chosen, seed)
            _run_round(options, wrk, setup, bodies, turn, rounds)
            if options.idle_seconds > 0:
                _run_idle(setup, options.idle_seconds, idle)
    aims = _aims(rounds, idle)
    _print_table(rounds, idle)
    report.print_aims(aims)
    figures = {
        "rounds": _raw(rounds),
        "idle_cpu_percent": idle,
        "cores": options.cores,
        "seed": options.seed,
        "mix": options.mix,
    }
    report.write_json(options.json, figures, aims)


def _options() -> argparse.Namespace:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time per contestant and round (s)")
    parser.add_argument("--warmup-seconds", type=float, default=2.0, help="load before each measurement (s)")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="idle CPU window; 0 leaves it out (s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 32], help="concurrent clients")
    parser.add_argument("--cores", type=int, default=contestants.default_cores(), help="cores of every model")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles of the texts")
    parser.add_argument(
        "--mix", choices=("sentences", "lengths"), default="sentences", help="sentences, or texts of 1 to 120 words"
    )
    parser.add_argument("--litserve-queue", choices=("default", "zmq"), default="default")
    return parser.parse_args()


def _run_round(options: argparse.Namespace, wrk: str, setup: Setup, bodies: Path, turn: int, rounds: Rounds) -> None:
    """All contestants once per concurrency. The order moves on by one each round: nobody always follows the same."""
    names = [BARE, *CONTESTANTS]
    names = names[turn % len(names) :] + names[: turn % len(names)]
    for clients in options.clients:
        for name in names:
            if name == BARE:
                for label in BARES:
                    batch = clients if label == BARE else 1
                    measured = contestants.bare(
                        setup, bodies, batch, options.warmup_seconds, options.seconds, parallel=label == BARE_PARALLEL
                    )
                    _note(rounds, turn, clients, label, measured)
                continue
            with CONTESTANTS[name](setup) as target:
                measured = _measure(options, wrk, target, bodies, clients)
            _note(rounds, turn, clients, name, measured)


def _measure(options: argparse.Namespace, wrk: str, target: Target, bodies: Path, clients: int) -> Measured:
    run_wrk(wrk, target, bodies, clients, options.warmup_seconds)
    return run_wrk(wrk, target, bodies, clients, options.seconds)


def _note(rounds: Rounds, turn: int, clients: int, name: str, measured: Measured) -> None:
    rounds[clients].setdefault(name, []).append(measured)
    trouble = f", {measured.failed} not 200, {measured.broken} broken" if measured.failed or measured.broken else ""
    print(f"round {turn + 1}, {clients:>2} clients, {name:<30} {measured.rate:8.1f}/s{trouble}", flush=True)


def _run_idle(setup: Setup, seconds: float, idle: dict[str, list[float]]) -> None:
    """CPU of the whole process tree when nobody asks anything, after start-up has settled."""
    for name, start in CONTESTANTS.items():
        with start(setup) as target:
            footprint.cpu_percent([], SETTLE_S)
            used = footprint.cpu_percent(footprint.tree(target.pid), seconds)
        idle.setdefault(name, []).append(used)
        print(f"idle CPU of {name:<30} {used:8.2f} % of a core", flush=True)


def _rates(by_name: dict[str, list[Measured]], name: str) -> list[float]:
    return [measured.rate for measured in by_name[name]]


def _aims(rounds: Rounds, idle: dict[str, list[float]]) -> list[Aim]:
    aims = []
    for clients, by_name in rounds.items():
        mine = _rates(by_name, OURS)
        # Padding can make batches of n slower than single texts: we are held against whichever is faster.
        # With one client there is one text at a time: the bare model that uses every core for others is no measure.
        bares = BARES[: 2 if clients == 1 else 3]
        rounds = zip(*(_rates(by_name, bare) for bare in bares), strict=True)
        best_bare = report.ratios(mine, [max(each) for each in rounds])
        aims.append(Aim(f"{clients} clients: ours / best bare model", best_bare, 0.9, True))
        for name, limit in ((LITSERVE_0, 1.25), (LITSERVE_10, 1.25), (MOSEC, 1.05)):
            label = f"{clients} clients: ours / {name}"
            aims.append(Aim(label, report.ratios(mine, _rates(by_name, name)), limit, True))
        tails = Spread.of([run.p99_ms / run.p50_ms for run in by_name[OURS]])
        aims.append(Aim(f"{clients} clients: p99 / p50 of ours", tails, 4.0, False))
    if OURS in idle:
        aims.append(Aim("idle CPU of ours", Spread.of(idle[OURS]), 1.0, False, " %"))
    return aims


def _print_table(rounds: Rounds, idle: dict[str, list[float]]) -> None:
    for clients, by_name in rounds.items():
        print(f"\n{clients} concurrent clients: requests/s, median (min–max); p50 and p99 in ms; not 200; broken")
        mine = _rates(by_name, OURS)
        for name, runs in by_name.items():
            rate = Spread.of(_rates(by_name, name)).text(1)
            p50, p99 = (Spread.of([getattr(run, key) for run in runs]).median for key in ("p50_ms", "p99_ms"))
            failed, broken = sum(run.failed for run in runs), sum(run.broken for run in runs)
            ratio = "" if name == OURS else f"ours/this {report.ratios(mine, _rates(by_name, name)).text()}"
            print(f"  {name:<30} {rate:>24} {p50:8.1f} {p99:8.1f} {failed:5} {broken:5}   {ratio}")
    if idle:
        print("\nidle CPU, % of a core, median (min–max)")
    for name, values in idle.items():
        print(f"  {name:<30} {Spread.of(values).text()}")


def _raw(rounds: Rounds) -> dict[str, Any]:
    return {
        str(clients): {name: [{**run._asdict(), "rate": run.rate} for run in runs] for name, runs in by_name.items()}
        for clients, by_name in rounds.items()
    }


if __name__ == "__main__":
    main()
