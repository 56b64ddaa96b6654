"""The heads of a text model as loaded: what the catalogue says, completed by the model's own `config.json`."""

import json
from typing import Any, NamedTuple

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError


class Decision(NamedTuple):
    """How probabilities become an answer.

    `multi_label`: each label has a sigmoid of its own; otherwise a softmax over all. A label counts above `threshold`;
    None counts the best one whatever its probability.
    """

    multi_label: bool
    threshold: float | None


class LoadedHeads:
    """By name: labels in logit order and the decision. Raises ModelLoadError where nobody names the labels."""

    def __init__(self, spec: ModelSpec) -> None:
        self._labels: dict[str, tuple[str, ...]] = {}
        self._decisions: dict[str, Decision] = {}
        classifying = {name: head for name, head in spec.heads.items() if head.pooling is None}
        open_ends = any(not head.labels or head.multi_label is None for head in classifying.values())
        config = read_config(spec) if open_ends else {}
        for name, head in classifying.items():
            self._labels[name] = head.labels or _labels_of(config, spec, name)
            multi_label = head.multi_label
            if multi_label is None:
                multi_label = config.get("problem_type") == "multi_label_classification"
            threshold = 0.5 if multi_label and head.threshold is None else head.threshold
            self._decisions[name] = Decision(multi_label, threshold)

    def labels(self, name: str) -> tuple[str, ...]:
        return self._labels[name]

    def decision(self, name: str) -> Decision:
        return self._decisions[name]


def read_config(spec: ModelSpec) -> dict[str, Any]:
    """The transformers library's `config.json`, or nothing where the model has none."""
    path = spec.folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path}: {error}") from None
    return config if isinstance(config, dict) else {}


def _labels_of(config: dict[str, Any], spec: ModelSpec, name: str) -> tuple[str, ...]:
    """`id2label`, whose keys are the numbers 0 to n - 1 as text."""
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != {str(number) for number in range(len(named))} or not named:
        raise ModelLoadError(
            f"model {spec.id!r}: nobody names the labels of head {name!r}; give `labels` in its TOML, or a config.json "
            f"with `id2label` in {spec.folder}"
        )
    return tuple(str(named[str(number)]) for number in range(len(named)))
