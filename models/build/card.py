"""The model card: measures once on the held-out files, then fills the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import evaluate
import onnx
import onnxruntime as ort
from corpus import EMOTIONS, Example, Split
from evaluate import Agreement, Quality
from nearness import nearest
from train import Recipe, as_input

PAGE = Path(__file__).parent / "card.md"
FAR = 0.6  # cosine to the nearest training sentence: the same topic at most
BACKCHANNEL_LABELS = ("other", "backchannel")

# By (output, texts at once, threads): ms of fp32 and of int8.
Latency = Mapping[tuple[str, int, int], Mapping[str, float]]


@dataclass(frozen=True)
class Figures:
    """Everything the page shows."""

    emotion: Quality
    emotion_exact: Quality
    emotion_keywords: Quality
    backchannel: Quality
    backchannel_exact: Quality
    backchannel_keywords: Quality
    int8: Agreement
    batched: Agreement
    latency: Latency
    far_texts: int
    far_accuracy: float


def _latency(exact: onnx.ModelProto, small: onnx.ModelProto, texts: list[Example]) -> Latency:
    found = {}
    typical = [as_input(example) for example in sorted(texts, key=lambda example: len(example.text))]
    middle = len(typical) // 2
    for output in (evaluate.EMBEDDING, evaluate.EMOTION):
        for count, batch in ((1, typical[middle : middle + 1]), (32, typical[middle - 16 : middle + 16])):
            for threads in (1, 2):
                models = {"fp32": exact, "int8": small}
                found[output, count, threads] = evaluate.latencies_ms(models, batch, output, threads)
    return found


def measure(
    exact: onnx.ModelProto, small: onnx.ModelProto, texts: list[Example], pairs: list[Example], trained: list[Example]
) -> Figures:
    """`trained`: the emotion sentences that were trained on, to tell how far the held-out ones are from them."""
    fp32, int8 = evaluate.Graph(exact), evaluate.Graph(small)
    near = nearest(texts, trained)
    far = [example for example, cosine in zip(texts, near, strict=True) if cosine < FAR]
    return Figures(
        emotion=evaluate.model_quality(int8, EMOTIONS, texts, evaluate.EMOTION),
        emotion_exact=evaluate.model_quality(fp32, EMOTIONS, texts, evaluate.EMOTION),
        emotion_keywords=evaluate.keyword_emotion(texts),
        backchannel=evaluate.model_quality(int8, BACKCHANNEL_LABELS, pairs, evaluate.BACKCHANNEL),
        backchannel_exact=evaluate.model_quality(fp32, BACKCHANNEL_LABELS, pairs, evaluate.BACKCHANNEL),
        backchannel_keywords=evaluate.keyword_backchannel(BACKCHANNEL_LABELS, pairs),
        int8=evaluate.agreement(fp32, int8, texts, pairs),
        batched=evaluate.agreement(int8, int8, texts, pairs, (1, 32)),
        latency=_latency(exact, small, texts),
        far_texts=len(far),
        far_accuracy=evaluate.model_quality(int8, EMOTIONS, far, evaluate.EMOTION).accuracy,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _class_table(model: Quality, keywords: Quality) -> str:
    rows = ["| class | precision | recall | F1 | keyword table F1 |", "|---|---|---|---|---|"]
    for (label, precision, recall, f1), (*_, other) in zip(model.per_class(), keywords.per_class(), strict=True):
        rows.append(f"| {label} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {other:.3f} |")
    rows.append(f"| **accuracy** | | | **{_percent(model.accuracy)}** | {_percent(keywords.accuracy)} |")
    return "\n".join(rows)


def _confusion_table(model: Quality) -> str:
    rows = [f"| true \\ guessed | {' | '.join(model.labels)} |", "|---" * (len(model.labels) + 1) + "|"]
    for label, counts in zip(model.labels, model.confusion, strict=True):
        rows.append(f"| {label} | {' | '.join(str(count) for count in counts)} |")
    return "\n".join(rows)


def _agreement_table(figures: Figures) -> str:
    int8, batched = figures.int8, figures.batched
    flips = round((1 - batched.emotion) * batched.texts), round((1 - batched.backchannel) * batched.pairs)
    return "\n".join(
        [
            "| | int8 against fp32 | one at a time against 32 at once (int8) |",
            "|---|---|---|",
            f"| emotion, same label | {_percent(int8.emotion)} of {int8.texts} | {flips[0]} flips of {batched.texts} |",
            f"| backchannel, same label | {_percent(int8.backchannel)} of {int8.pairs} "
            f"| {flips[1]} flips of {batched.pairs} |",
            f"| embedding, cosine mean | {int8.cosine_mean:.5f} | {batched.cosine_mean:.6f} |",
            f"| embedding, cosine min | {int8.cosine_min:.5f} | {batched.cosine_min:.6f} |",
        ]
    )


def _latency_table(figures: Figures) -> str:
    rows = ["| output | texts at once | threads | fp32 ÷ int8 |", "|---|---|---|---|"]
    for (output, count, threads), values in figures.latency.items():
        rows.append(f"| {output} | {count} | {threads} | {values['fp32'] / values['int8']:.2f} × |")
    return "\n".join(rows)


def text(figures: Figures, data: Mapping[str, Split], recipe: Recipe) -> str:
    emotion, backchannel = data[evaluate.EMOTION], data[evaluate.BACKCHANNEL]
    values = {
        "emotion_table": _class_table(figures.emotion, figures.emotion_keywords),
        "emotion_confusion": _confusion_table(figures.emotion),
        "emotion_exact": _percent(figures.emotion_exact.accuracy),
        "backchannel_table": _class_table(figures.backchannel, figures.backchannel_keywords),
        "backchannel_confusion": _confusion_table(figures.backchannel),
        "backchannel_exact": _percent(figures.backchannel_exact.accuracy),
        "agreement_table": _agreement_table(figures),
        "latency_table": _latency_table(figures),
        "emotion_test": str(figures.int8.texts),
        "backchannel_test": str(figures.int8.pairs),
        "emotion_train": str(len(emotion.train) + len(emotion.dev)),
        "backchannel_train": str(len(backchannel.train) + len(backchannel.dev)),
        "dropped": f"{emotion.dropped} sentences and {backchannel.dropped} pairs",
        "tuned": str(6 - recipe.shared_layers),
        "runs": str(len(recipe.seeds)),
        "far_texts": str(figures.far_texts),
        "far_accuracy": _percent(figures.far_accuracy),
        "ort": ort.__version__,
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", value)
    return page
