"""Measurements for the card: quality on the held-out files, int8 against fp32, batch effects, latency."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import backbone
import baselines
import numpy as np
import onnx
from corpus import EMOTIONS, Example
from graph import Array
from quantise import session
from train import as_input

EMBEDDING, EMOTION, BACKCHANNEL = "embedding", "emotion_logits", "backchannel_logits"
LEAST_AGREEMENT = 0.985
LEAST_COSINE = 0.985


class Graph:
    """One ONNX graph that computes only the branch that is asked for, as the runtime does."""

    def __init__(self, model: onnx.ModelProto, threads: int = 2) -> None:
        self._session = session(model, threads)
        self._tokenizer = backbone.tokenizer()

    def run(self, texts: Sequence[backbone.Text], output: str, batch: int = 1) -> Array:
        parts = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        return np.concatenate([self.run_feeds(self.feeds(list(part)), output) for part in parts])

    def feeds(self, texts: list[backbone.Text]) -> dict[str, Array]:
        return backbone.encode(self._tokenizer, texts)

    def run_feeds(self, feeds: dict[str, Array], output: str) -> Array:
        unused = "with_labels" if output == EMBEDDING else "with_embedding"
        return np.asarray(self._session.run([output], {**feeds, unused: np.array(False)})[0])


@dataclass(frozen=True)
class Agreement:
    """Two ways of computing the same texts: share of equal labels per head, cosine of the embeddings."""

    emotion: float
    backchannel: float
    cosine_mean: float
    cosine_min: float
    texts: int
    pairs: int

    def require(self) -> None:
        """Ends the build when int8 is not faithful enough."""
        if min(self.emotion, self.backchannel) < LEAST_AGREEMENT or self.cosine_mean < LEAST_COSINE:
            raise SystemExit(f"int8 is out of tolerance: {self}")


@dataclass(frozen=True)
class Quality:
    """Confusion (true, guessed) counts."""

    labels: tuple[str, ...]
    confusion: Array

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    def per_class(self) -> list[tuple[str, float, float, float]]:
        """(label, precision, recall, F1)."""
        rows = []
        for i, label in enumerate(self.labels):
            hit = self.confusion[i, i]
            precision = float(hit / max(1, self.confusion[:, i].sum()))
            recall = float(hit / max(1, self.confusion[i].sum()))
            rows.append((label, precision, recall, 2 * precision * recall / max(1e-9, precision + recall)))
        return rows


def quality(labels: tuple[str, ...], examples: list[Example], guesses: Sequence[int]) -> Quality:
    confusion = np.zeros((len(labels), len(labels)), int)
    for example, guess in zip(examples, guesses, strict=True):
        confusion[example.label, guess] += 1
    return Quality(labels, confusion)


def model_quality(graph: Graph, labels: tuple[str, ...], examples: list[Example], output: str) -> Quality:
    logits = graph.run([as_input(example) for example in examples], output)
    return quality(labels, examples, logits.argmax(axis=1).tolist())


def keyword_emotion(examples: list[Example]) -> Quality:
    return quality(EMOTIONS, examples, [EMOTIONS.index(baselines.emotion(example.text)) for example in examples])


def keyword_backchannel(labels: tuple[str, ...], examples: list[Example]) -> Quality:
    return quality(labels, examples, [int(baselines.backchannel(example.text)) for example in examples])


def agreement(
    first: Graph, second: Graph, texts: list[Example], pairs: list[Example], batches: tuple[int, int] = (1, 1)
) -> Agreement:
    """`batches`: how many texts the first and the second graph get at once."""

    def both(examples: list[Example], output: str) -> tuple[Array, Array]:
        inputs = [as_input(example) for example in examples]
        return first.run(inputs, output, batches[0]), second.run(inputs, output, batches[1])

    def same(examples: list[Example], output: str) -> float:
        one, other = both(examples, output)
        return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())

    one, other = both(texts, EMBEDDING)
    cosine = (one * other).sum(axis=1)
    return Agreement(
        same(texts, EMOTION),
        same(pairs, BACKCHANNEL),
        float(cosine.mean()),
        float(cosine.min()),
        len(texts),
        len(pairs),
    )


def latencies_ms(
    models: dict[str, onnx.ModelProto], texts: list[backbone.Text], output: str, threads: int, rounds: int = 21
) -> dict[str, float]:
    """Median per model; the models take turns, so that all see the same machine."""
    graphs = {name: Graph(model, threads) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 2):
        for name, graph in graphs.items():
            feeds = graph.feeds(texts)
            start = time.perf_counter()
            graph.run_feeds(feeds, output)
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}
