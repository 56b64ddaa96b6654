"""Draws what `benchmarks.text --json` wrote. Arguments: the JSON file and the picture (png or svg)."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"torch": "#c44e52", "onnx": "#4c72b0", "int8": "#55a868"}
TITLES = {
    "batch": "direct, one call with n texts",
    "concurrent": "direct, n threads with a text each",
    "http": "HTTP, n clients with a text each",
    "http batch": "HTTP, one client with n texts",
}


def draw(figures: dict[str, Any], target: Path) -> None:
    """One panel a way of asking: median as bars, up to the 99th percentile as whiskers (ms)."""
    ways = [way for way in TITLES if way in figures["latency"]]
    picture, panels = pyplot.subplots(1, len(ways), figsize=(4.2 * len(ways), 4), squeeze=False)
    for panel, way in zip(panels[0], ways, strict=True):
        names = list(figures["latency"][way])
        sizes = list(figures["latency"][way][names[0]])
        for number, name in enumerate(names):
            rows = [figures["latency"][way][name][size] for size in sizes]
            places = [place + (number - 1) * 0.27 for place in range(len(sizes))]
            heights = [row["p50_ms"] for row in rows]
            whiskers = [[0.0] * len(rows), [row["p99_ms"] - row["p50_ms"] for row in rows]]
            panel.bar(places, heights, 0.25, yerr=whiskers, capsize=2, color=COLOURS[name], label=name)
        panel.set_xticks(range(len(sizes)), sizes)
        panel.set_title(TITLES[way], fontsize=10)
        panel.set_xlabel("n")
    panels[0][0].set_ylabel("ms (median; whisker: 99 %)")
    panels[0][0].legend()
    picture.suptitle(figures["title"], fontsize=11)
    picture.tight_layout()
    picture.savefig(target, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["figures"], Path(sys.argv[2]))
