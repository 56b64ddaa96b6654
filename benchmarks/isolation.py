"""One bad request among ten that arrive together: what becomes of the nine others, with ours, LitServe and mosec.

Run as `python -m benchmarks.isolation`; see benchmarks/README.md.
"""

import random
from typing import Any

from benchmarks import report
from benchmarks.load import Target, post_together, read_texts
from benchmarks.peers import contestants
from benchmarks.peers.contestants import CONTESTANTS, OURS, Setup
from benchmarks.peers.environment import peers_python
from benchmarks.peers.model import BAD_TEXT
from benchmarks.report import Aim, Spread

TOGETHER = 10
ITEM_S = 0.005  # about what the real model takes on a small machine


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="10 rounds have 90 innocent requests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    contestants.forget_python_settings()
    setup = Setup(peers_python(), cores=1, failing=True, item_s=ITEM_S)
    report.print_machine()
    figures: dict[str, Any] = {}
    for name, start in CONTESTANTS.items():
        with start(setup) as target:
            figures[name] = _run(target, options.rounds, options.seed)
        print(_line(name, figures[name]), flush=True)
    failed = Spread.of([float(count) for count in figures[OURS]["innocent_failed"]])
    aims = [Aim("innocent requests that fail with ours, a round", failed, 0, False)]
    report.print_aims(aims)
    report.write_json(options.json, figures, aims)


def _run(target: Target, rounds: int, seed: int) -> dict[str, Any]:
    """The same texts and the same place of the bad one for every contestant."""
    chance = random.Random(seed)
    texts = read_texts()
    innocent_failed, bad_statuses = [], []
    for turn in range(rounds):
        together = chance.sample(texts, TOGETHER)
        bad = turn % TOGETHER
        together[bad] = BAD_TEXT
        statuses = post_together(target, together)
        bad_statuses.append(statuses.pop(bad))
        innocent_failed.append(sum(status != 200 for status in statuses))
    return {"innocent": rounds * (TOGETHER - 1), "innocent_failed": innocent_failed, "bad_statuses": bad_statuses}


def _line(name: str, figures: dict[str, Any]) -> str:
    failed, innocent = sum(figures["innocent_failed"]), figures["innocent"]
    spread = Spread.of([float(count) for count in figures["innocent_failed"]]).text(0)
    statuses = sorted(set(figures["bad_statuses"]))
    return (
        f"{name:<30} {innocent - failed:>3} of {innocent} others succeed, {failed:>3} fail;"
        f" failing per round {spread}; the bad one got {statuses}"
    )


if __name__ == "__main__":
    main()
