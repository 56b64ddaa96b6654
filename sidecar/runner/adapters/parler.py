"""Parler-TTS: a voice made from its description in words, 44.1 kHz, on torch."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.capabilities.tts import Delivery, Speech
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.voices import DESCRIBED
from sidecar.errors import InputError, ModelLoadError, NoTimingsError
from sidecar.runner import prosody
from sidecar.runner.adapters import Report
from sidecar.runner.adapters.torch import TorchAdapter

_DESCRIPTION_TOKENIZER = "description_tokenizer/tokenizer.json"
_PAUSE_S = 0.2
_REMEMBERED = 16
_PLAIN = "natural and clear, speaking at a moderate pace"
_CLEAR = "The recording is of very high quality, with the voice sounding clear and very close up."
# A description that has one of these says itself what the recording is like.
_OF_RECORDING = ("recording", "recorded", "audio", "noise", "noisy", "quality", "reverb", "echo", "close", "distant")


class ParlerAdapter(TorchAdapter):
    """Offers `Speaker`. `options.speakers` are names that the model was trained with, `options.speaker` is its own.

    Codes are drawn at random, from the request's seed: the same request gives the same sound.
    """

    sample_rate = 44_100
    # About 20 s of speech; the model was trained on up to 30.
    sentence_limit = 300

    def __init__(self, spec: ModelSpec, threads: int, device: str) -> None:
        super().__init__(spec, threads, device)
        # A table of names and genders, or a list of names.
        self._speakers = tuple(str(name) for name in spec.options.get("speakers", ()))
        self._own = str(spec.options.get("speaker") or next(iter(self._speakers), "A speaker"))

    def load(self, report: Report) -> None:
        # Imported here: not needed to know the adapter's name, but its libraries are those of the torch profile.
        from tokenizers import Tokenizer

        from sidecar.runner.parler.checkpoint import read_config
        from sidecar.runner.parler.model import Parler

        folder = self._spec.folder
        config = read_config(folder)
        self._texts = _tokenizer(Tokenizer, folder / "tokenizer.json")
        self._descriptions = self._texts
        if not config.one_tokenizer:
            self._descriptions = self._other_tokenizer(Tokenizer, config.text_encoder)
        self._check_size("text", self._texts, config.prompt_vocabulary)
        self._check_size("description", self._descriptions, int(config.text_encoder["vocab_size"]))
        transformers = self._import_libraries(report)
        # Gigabytes from a slow disk take their time, of which the server is to hear.
        self.model = Parler(
            self._torch,
            transformers,
            folder,
            config,
            lambda done, total: report("weights", done, total, "tensors"),
        )
        self.sample_rate = self.model.sample_rate
        self._known: OrderedDict[str, Any] = OrderedDict()
        report("warm up", 3, 4, "steps")
        self._place()

    def speak(
        self, sentence: str, voice: str | None, delivery: Delivery, *, pause: bool, timings: bool
    ) -> Iterator[Speech | None]:
        if timings:
            raise NoTimingsError(f"{self._spec.id} does not tell its timings; espeak-ng does")
        with self._naming_exhaustion():
            memory = self._memory(self.describe(voice, delivery))
        sounds = self.model.speech(memory, self._texts.encode(sentence).ids, delivery.seed)
        heard: list[Any] = []
        while True:
            # Not around a `yield`: what is done between two steps is not this model's.
            with self._naming_exhaustion():
                sound = next(sounds, _END)
            if sound is _END:
                break
            if sound is None or delivery.tempo != 1:
                heard += [] if sound is None else [sound]
                yield None
            else:
                yield Speech(prosody.to_int16(sound), more=True)
        rest = prosody.to_int16(np.concatenate(heard)) if heard else np.zeros(0, np.int16)
        rest = prosody.stretch(rest, 1 / delivery.tempo, self.sample_rate)
        yield Speech(np.concatenate((rest, prosody.silence(_PAUSE_S if pause else 0.0, self.sample_rate))))

    def describe(self, voice: str | None, delivery: Delivery) -> str:
        """The description that the model gets. Raises InputError for a voice that it has not."""
        if voice not in (None, DESCRIBED, *self._speakers):
            raise InputError(f"{self._spec.id} has no voice {voice!r}")
        told = delivery.description.strip().rstrip(". ")
        name = voice if voice in self._speakers else None
        if not told:
            told = f"{name or self._own}'s voice is {delivery.manner or _PLAIN}"
        else:
            told = ", ".join(part for part in (told, delivery.manner) if part)
            if name is not None and name.lower() not in told.lower():
                told = f"{name} is speaking. {told}"
        if any(word in told.lower() for word in _OF_RECORDING):
            return f"{told}."
        return f"{told}. {_CLEAR}"

    def _memory(self, description: str) -> Any:
        """What the model makes of a description; the last few are kept, as one stands for all sentences of a text."""
        memory = self._known.pop(description, None)
        if memory is None:
            memory = self.model.read(self._descriptions.encode(description).ids)
        self._known[description] = memory
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return memory

    def _warm_up(self) -> None:
        self._known.clear()  # which may lie on another device
        sounds = self.speak("Ready.", None, Delivery(), pause=False, timings=False)
        # Not to its end: that is where a model of this size would spend a minute of a slow processor.
        for _ in zip(range(16), sounds, strict=False):
            pass
        self._known.clear()

    def _other_tokenizer(self, tokenizers: Any, text_encoder: Mapping[str, Any]) -> Any:
        path = self._spec.folder / str(self._spec.options.get("description_tokenizer", _DESCRIPTION_TOKENIZER))
        if path.is_file():
            return _tokenizer(tokenizers, path)
        origin = text_encoder.get("_name_or_path") or "its text encoder's repository"
        raise ModelLoadError(
            f"{self._spec.id} reads descriptions with another tokenizer than texts, and its own repository has that of "
            f"the texts only: put tokenizer.json of {origin} at {path}"
        )

    def _check_size(self, what: str, tokenizer: Any, rows: int) -> None:
        if tokenizer.get_vocab_size() > rows:
            raise ModelLoadError(
                f"{self._spec.folder}: the {what}'s tokenizer has {tokenizer.get_vocab_size()} tokens, "
                f"the model knows {rows}: they do not belong together"
            )


_END = object()


def _tokenizer(tokenizers: Any, path: Path) -> Any:
    try:
        made = tokenizers.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ModelLoadError(f"{path}: {error}") from None
    made.no_truncation()
    made.no_padding()
    return made
