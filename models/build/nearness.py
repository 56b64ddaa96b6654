"""Drops training lines that say the same as a held-out line in other words, by the original sentence embedding."""

import backbone
import numpy as np
import torch
from corpus import Example, Split, words
from graph import Array
from transformers import BertModel

# Cosine to a held-out line. By topic alone, every tenth line of two parts reaches 0.63; from 0.7 on it is a paraphrase.
PARAPHRASE = 0.7
# A lone "mm-hm" or "I'm scared" is bound to recur and is no copy.
FEWEST_WORDS = 4
BATCH = 64


def embeddings(examples: list[Example]) -> Array:
    """Unit vectors (examples, 384), both segments of a pair joined to one text."""
    texts = [f"{example.first or ''} {example.text}".strip() for example in examples]
    model = BertModel.from_pretrained(backbone.folder(), add_pooling_layer=False)
    model.train(False)
    tokenizer = backbone.tokenizer()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        feeds = {name: torch.from_numpy(v) for name, v in backbone.encode(tokenizer, [texts[i] for i in part]).items()}
        with torch.no_grad():
            hidden = model(**feeds).last_hidden_state
        mask = feeds["attention_mask"][..., None].float()
        found[part] = torch.nn.functional.normalize((hidden * mask).sum(1)).numpy()
    return found


def nearest(examples: list[Example], others: list[Example]) -> Array:
    """For each example the largest cosine to any of the others."""
    return np.asarray((embeddings(examples) @ embeddings(others).T).max(axis=1))


def without_paraphrases(split: Split, test: list[Example]) -> Split:
    def keep(examples: list[Example]) -> list[Example]:
        near = nearest(examples, test)
        return [e for e, n in zip(examples, near, strict=True) if n < PARAPHRASE or len(words(e)) < FEWEST_WORDS]

    train, dev = keep(split.train), keep(split.dev)
    dropped = len(split.train) + len(split.dev) - len(train) - len(dev)
    return Split(train, dev, split.dropped + dropped)
