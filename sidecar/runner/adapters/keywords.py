"""A table of phrases as a model: what a classifier has to beat, and what answers when there is nothing else."""

import math
import re
from collections.abc import Sequence
from typing import Any

from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ModelLoadError
from sidecar.runner.adapters import Report
from sidecar.runner.adapters.heads import Decision, LoadedHeads


class KeywordsAdapter:
    """A text counts as `options.label` if it is nothing but (repeated) `options.phrases`; of a pair, its second text.

    `options.matched` and `options.unmatched` are the probabilities of that label in either case.
    """

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        self.device = "cpu"
        self.device_reason = "a table of phrases"
        self._spec = spec

    def load(self, report: Report) -> None:
        options = self._spec.options
        try:
            self._phrases = frozenset(words(phrase) for phrase in options["phrases"])
            self._label = str(options["label"])
            self._matched, self._unmatched = float(options["matched"]), float(options["unmatched"])
        except KeyError as error:
            raise ModelLoadError(f"model {self._spec.id!r}: its TOML lacks options.{error.args[0]}") from None
        if not self._phrases or not 0 < self._unmatched < 1 or not 0 < self._matched < 1:
            raise ModelLoadError(f"model {self._spec.id!r}: options need phrases, and probabilities between 0 and 1")
        self._longest = max(len(phrase) for phrase in self._phrases)
        self._heads = LoadedHeads(self._spec)

    def labels(self, head: str) -> Sequence[str]:
        return self._heads.labels(head)

    def decision(self, head: str) -> Decision:
        return self._heads.decision(head)

    def classify(self, texts: Sequence[str | tuple[str, str]], head: str) -> Any:
        """Logits, (texts, labels): logarithms of the probabilities."""
        composed = self._spec.heads[head].compose(texts)
        return [self._logits(text if isinstance(text, str) else text[1], head) for text in composed]

    def _logits(self, text: str, head: str) -> list[float]:
        labels = self.labels(head)
        probability = self._matched if self._only_phrases(words(text)) else self._unmatched
        rest = (1 - probability) / max(1, len(labels) - 1)
        return [math.log(probability if label == self._label else rest) for label in labels]

    def _only_phrases(self, said: tuple[str, ...]) -> bool:
        """Whether the words can be cut into phrases; all cuts at once, as "oh no way" is "oh" and "no way"."""
        ends = {0}
        for start in range(len(said)):
            if start in ends:
                sizes = range(1, min(self._longest, len(said) - start) + 1)
                ends.update(start + size for size in sizes if said[start : start + size] in self._phrases)
        return bool(said) and len(said) in ends


def words(text: str) -> tuple[str, ...]:
    """Lower-case words; everything else is left out."""
    return tuple(re.findall(r"[a-z'-]+", text.lower().replace("’", "'")))
