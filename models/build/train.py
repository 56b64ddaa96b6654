"""Fine-tuning: one set of upper layers for both tasks, averaged over runs that see the data in different order."""

import multiprocessing
import random
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import backbone
import numpy as np
import torch
from corpus import Example, Split
from graph import HIDDEN, Head, Weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

HEAD_SEED = 1  # shared by all runs: only weights that began alike can be averaged
MAX_TOKENS = 96

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Chosen on the dev split; see the README."""

    shared_layers: int = 1
    epochs: int = 6
    batch: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.1
    label_smoothing: float = 0.1
    dropout: float = 0.1
    noise: float = 0.3
    seeds: tuple[int, ...] = (1, 2, 3, 4)


class MultiTask(nn.Module):
    """The backbone and one linear head per output, on the mean over the tokens."""

    def __init__(self, recipe: Recipe, labels: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(HEAD_SEED)
        config = BertConfig.from_pretrained(backbone.folder())
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.dropout
        self.bert = BertModel.from_pretrained(backbone.folder(), config=config, add_pooling_layer=False)
        heads = {name: nn.Linear(HIDDEN, count) for name, count in labels.items()}
        for head in heads.values():
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)
        self.dropout = nn.Dropout(recipe.dropout)
        self.tokenizer = backbone.tokenizer()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        frozen = [self.bert.embeddings, *self.bert.encoder.layer[: recipe.shared_layers]]
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, examples: list[Example], task: str) -> Tensor:
        """Logits (examples, labels)."""
        feeds = backbone.encode(self.tokenizer, [as_input(example) for example in examples])
        tensors = {name: torch.from_numpy(values) for name, values in feeds.items()}
        hidden = self.bert(**tensors).last_hidden_state
        mask = tensors["attention_mask"][..., None].to(hidden.dtype)
        logits: Tensor = self.heads[task](self.dropout((hidden * mask).sum(1) / mask.sum(1)))
        return logits


def as_input(example: Example) -> backbone.Text:
    """Emotion: the text. Backchannel: the pair (previous, utterance); the tokenizer lower-cases both."""
    return example.text if example.first is None else (example.first, example.text)


def _length(example: Example) -> int:
    return len(example.text) + len(example.first or "")


def _batches(data: dict[str, list[Example]], size: int, chance: random.Random) -> Iterator[tuple[str, list[Example]]]:
    """All examples once: shuffled, then sorted by length within pools of 16 batches so that little is padding."""
    found = []
    for task, examples in data.items():
        order = chance.sample(examples, len(examples))
        for start in range(0, len(order), size * 16):
            pool = sorted(order[start : start + size * 16], key=_length)
            found += [(task, pool[i : i + size]) for i in range(0, len(pool), size)]
    chance.shuffle(found)
    yield from found


def _noisy(text: str, chance: random.Random) -> str:
    """As people type: no punctuation, no apostrophes, or two letters swapped."""
    kind = chance.random()
    if kind < 0.5:
        changed = re.sub(r"[.,!?;:…]+(?=\s|$)", "", text)
    elif kind < 0.65:
        changed = text.replace("'", "").replace("’", "")
    else:
        i = chance.randrange(max(1, len(text) - 1))
        changed = text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :]
    return changed or text


def _varied(example: Example, share: float, chance: random.Random) -> Example:
    def maybe(text: str) -> str:
        return _noisy(text, chance) if text and chance.random() < share else text

    return Example(maybe(example.text), example.label, None if example.first is None else maybe(example.first))


def _optimiser(model: MultiTask, recipe: Recipe) -> torch.optim.AdamW:
    tuned = [value for value in model.bert.parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in tuned if value.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in tuned if value.ndim < 2], "weight_decay": 0.0},
        {"params": list(model.heads.parameters()), "weight_decay": 0.0, "lr": recipe.head_learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def train_once(data: dict[str, list[Example]], labels: dict[str, int], recipe: Recipe, seed: int) -> MultiTask:
    """One run. `data` maps an output's name to its examples; learning rates rise linearly, then fall to zero."""
    model = MultiTask(recipe, labels)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    optimiser = _optimiser(model, recipe)
    steps = recipe.epochs * sum(1 for _ in _batches(data, recipe.batch, random.Random(seed)))
    rise = max(1, int(recipe.warm_up * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min((i + 1) / rise, (steps - i) / (steps - rise)))
    model.train()
    for epoch in range(recipe.epochs):
        losses = []
        for task, batch in _batches(data, recipe.batch, chance):
            examples = [_varied(example, recipe.noise, chance) for example in batch]
            target = torch.tensor([example.label for example in examples])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(examples, task)
            loss = functional.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  seed {seed} epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    return model.eval()


def _run(data: dict[str, list[Example]], labels: dict[str, int], recipe: Recipe, seed: int) -> State:
    return dict(train_once(data, labels, recipe, seed).state_dict())


def train_all(data: dict[str, list[Example]], labels: dict[str, int], recipe: Recipe, processes: int) -> list[State]:
    """One run per seed. Each uses one thread, so the result does not depend on the number of cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        runs = [pool.submit(_run, data, labels, recipe, seed) for seed in recipe.seeds]
        return [run.result() for run in runs]


def restored(states: list[State], labels: dict[str, int], recipe: Recipe) -> MultiTask:
    """The mean of all weights (a "model soup": Wortsman et al., 2022) as a model."""
    model = MultiTask(recipe, labels)
    model.load_state_dict({name: torch.stack([s[name].float() for s in states]).mean(0) for name in states[0]})
    return model.eval()


def accuracy(model: MultiTask, task: str, examples: list[Example]) -> float:
    """In fp32, in batches of similar length."""
    ordered = sorted(examples, key=_length)
    right = 0
    with torch.no_grad():
        for start in range(0, len(ordered), 64):
            part = ordered[start : start + 64]
            guesses = model(part, task).argmax(1).tolist()
            right += sum(guess == example.label for guess, example in zip(guesses, part, strict=True))
    return right / len(ordered)


def exported(model: MultiTask) -> tuple[Weights, list[Head]]:
    """The tuned layers by their checkpoint names, and the heads."""
    values = {name: value.numpy() for name, value in model.bert.state_dict().items()}
    state = model.heads.state_dict()
    heads = [Head(name, state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()) for name in model.heads]
    return values, heads


def whole(split: Split) -> list[Example]:
    """Training and dev part together, for the final runs."""
    return split.train + split.dev
