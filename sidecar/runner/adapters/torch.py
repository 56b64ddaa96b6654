"""Text classifiers in the format of transformers: a folder of config, tokenizer and weights, computed by torch."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np

from sidecar.catalogue.spec import Head, ModelSpec
from sidecar.errors import ModelLoadError, OutOfMemoryError, PickleRefusedError
from sidecar.runner import torch_device
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.adapters.heads import Decision, LoadedHeads

SAFE = "model.safetensors"
PICKLE = "pytorch_model.bin"


class TorchAdapter(BaseAdapter):
    """Offers `TextClassifier`. Only files of the model's folder are read, and no code of theirs is ever run.

    The model has one head, and every head of the entry means it.
    """

    model_class = "AutoModelForSequenceClassification"

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        super().__init__(spec, threads, device)
        # A tokenizer of transformers changes itself for each call, so it must not be called twice at once.
        self._tokenizing = threading.Lock()

    def load(self, report: Report) -> None:
        if missing := self._spec.missing_files():
            raise ModelLoadError(f"{self._spec.folder} lacks {', '.join(missing)}")
        if headless := set(self._spec.capabilities) - self._spec.heads.keys():
            raise ModelLoadError(f"model {self._spec.id!r} lacks a head for {', '.join(sorted(headless))} in its TOML")
        safe = self._has_safe_weights()
        self._heads = LoadedHeads(self._spec)
        transformers = self._import_libraries(report)
        report("weights", 2, 4, "steps")
        self.tokenizer = self._read(transformers.AutoTokenizer, use_fast=True)
        self.model = self._read_model(transformers, safe)
        for name, head in self._spec.heads.items():
            self._check_labels(name, head)
        self.window = self._longest()
        self._accepted = [name for name in self.tokenizer.model_input_names if name in _parameters_of(self.model)]
        report("warm up", 3, 4, "steps")
        self._place()

    def labels(self, head: str) -> Sequence[str]:
        return self._heads.labels(head)

    def decision(self, head: str) -> Decision:
        return self._heads.decision(head)

    def classify(self, texts: Sequence[str | tuple[str, str]], head: str) -> Any:
        composed = self._spec.heads[head].compose(texts)
        inputs = {name: tensor.to(self.device) for name, tensor in self.encode(composed).items()}
        with self._naming_exhaustion(), self._torch.inference_mode():
            logits = self.model(**inputs).logits
            return logits.float().cpu().numpy().astype(np.float32, copy=False)

    def encode(self, texts: Sequence[Any]) -> dict[str, Any]:
        """The model's inputs, int64 tensors (batch, longest text), on the CPU."""
        form = {"truncation": True, "max_length": self.window}
        kinds = {isinstance(text, str) for text in texts}
        with self._tokenizing:
            if kinds == {True}:
                encoded = self.tokenizer(list(texts), **form)
            elif kinds == {False}:
                first, second = zip(*texts, strict=True)
                encoded = self.tokenizer(list(first), list(second), **form)
            else:  # transformers takes texts and pairs only apart
                each = [self.tokenizer(*((text,) if isinstance(text, str) else text), **form) for text in texts]
                encoded = {name: [one[name] for one in each] for name in each[0]}
            encoded = self.tokenizer.pad(encoded, padding=True, return_tensors="pt")
        return {name: encoded[name] for name in self._accepted}

    def _import_libraries(self, report: Report) -> Any:
        """The transformers library, quiet and on the threads that are ours."""
        report("torch", 0, 4, "steps")
        import torch

        report("transformers", 1, 4, "steps")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(self._threads)
        if torch.get_num_interop_threads() != 1:
            torch.set_num_interop_threads(1)
        self._torch = torch
        return transformers

    def _has_safe_weights(self) -> bool:
        """Whether the weights are safetensors. Raises PickleRefusedError, ModelLoadError."""
        folder = self._spec.folder
        if (folder / SAFE).is_file() or (folder / f"{SAFE}.index.json").is_file():
            return True
        index = folder / f"{PICKLE}.index.json"
        if index.is_file():
            pickles = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (folder / PICKLE).is_file():
            pickles = [PICKLE]
        else:
            raise ModelLoadError(f"{folder} has no weights: neither {SAFE} nor {PICKLE}")
        # The server lets a pickle through only with the user's consent; this is the second lock on the same door.
        allowed = {file.path for file in self._spec.files if file.pickle}
        if refused := [name for name in pickles if name not in allowed]:
            raise PickleRefusedError(
                f"{folder / refused[0]} is a Python pickle; it is loaded only if the model's entry names that very "
                "file with `pickle = true`. Safer: take the model's safetensors"
            )
        return False

    def _read(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(
                str(self._spec.folder), local_files_only=True, trust_remote_code=False, **options
            )
        except UnpicklingError:
            raise ModelLoadError(
                f"{self._spec.folder / PICKLE} holds more than numbers: it is damaged, or wants to run code"
            ) from None
        except (OSError, ValueError, KeyError, ImportError) as error:
            if "trust_remote_code" in str(error):
                raise ModelLoadError(
                    f"{self._spec.folder} wants to run code of its own, which is never done; take a model whose "
                    "architecture transformers knows"
                ) from None
            raise ModelLoadError(f"{self._spec.folder}: {str(error).strip().splitlines()[0]}") from error

    def _read_model(self, transformers: Any, safe: bool) -> Any:
        model, info = self._read(
            getattr(transformers, self.model_class),
            use_safetensors=safe,
            weights_only=True,
            dtype=self._torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named here, with the shapes, instead of in a report on stderr
        )
        if misfits := sorted(info["mismatched_keys"], key=str):
            name, has, wants = misfits[0]
            shapes = f"{name} is {tuple(has)}, not {tuple(wants)}"
            raise ModelLoadError(f"{self._spec.folder}: the weights do not fit its config.json: {shapes}")
        # The vector that training puts in place of masked sounds: an answer never reads it.
        if missing := sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed")):
            # transformers would go on with random numbers there, and answer nonsense with confidence.
            raise ModelLoadError(
                f"{self._spec.folder} is no trained classifier: its weights lack {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}; take a model that was fine-tuned for classification"
            )
        return model.eval()

    def _check_labels(self, name: str, head: Head) -> None:
        """The entry may call the classes what it likes, but must not take one for another. Raises ModelLoadError."""
        told, known = ([label.lower() for label in labels] for labels in (head.labels, _labels_of(self.model.config)))
        if not told:
            return
        if len(told) != len(known):
            raise ModelLoadError(f"head {name!r} has {len(told)} labels, the model {len(known)}: {', '.join(known)}")
        swapped = [
            f"{number}: {mine!r} for {theirs!r}"
            for number, (mine, theirs) in enumerate(zip(told, known, strict=True))
            if mine != theirs and mine in known
        ]
        if swapped:
            raise ModelLoadError(f"head {name!r} has the model's labels in another order: {', '.join(swapped)}")

    def _longest(self) -> int:
        """Tokens that entry, tokenizer and position table all allow."""
        limits = [self._spec.window, self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
                # RoBERTa's positions begin after that of the padding.
                limits.append(module.num_embeddings - (-1 if module.padding_idx is None else module.padding_idx) - 1)
        return int(min(limits))

    def _place(self) -> None:
        """Onto the device that computes, with a first batch; back to the CPU where that fails."""
        torch = self._torch
        self.device, self.device_reason = torch_device.choose(torch, self._wanted)
        if self.device != "cpu":
            try:
                self.model.to(self.device)
                self._warm_up()
                return
            except (RuntimeError, OutOfMemoryError) as error:
                cause = str(error).strip().splitlines()[0]
                self.device_reason = f"{self.device} could not be used: {cause}; running on the CPU"
                self.device = "cpu"
                self.model.to("cpu")
                torch_device.release(torch)
        self._warm_up()

    def _warm_up(self) -> None:
        head = next(iter(self._spec.heads))
        self.classify(["warm up"], head)
        self.classify(["warm up", "a second, somewhat longer text, so that padding is warm as well"], head)

    @contextmanager
    def _naming_exhaustion(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not torch_device.is_exhausted(self._torch, error):
                raise
            cause = str(error).strip().splitlines()[0]
        else:
            return
        # Here, because within the handler the error still holds the tensors of the attempt.
        torch_device.release(self._torch)
        raise OutOfMemoryError(f"model {self._spec.id!r} ran out of memory on {self.device}: {cause}")


def _labels_of(config: Any) -> tuple[str, ...]:
    names = {int(number): str(name) for number, name in config.id2label.items()}
    return tuple(names[number] for number in sorted(names))


def _parameters_of(model: Any) -> frozenset[str]:
    from inspect import signature

    return frozenset(signature(model.forward).parameters)
