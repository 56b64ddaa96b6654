"""A checkpoint's own words: its sizes, how it wants codes to be drawn, and its weights by their names."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.errors import ModelLoadError

SAFE = "model.safetensors"
ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new")
_CODECS = ("dac", "dac_on_the_hub")
_SECONDS = 30
# Values that change nothing; another one is a way of drawing that is not here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1),
    "min_p": (None,),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "penalty_alpha": (None,),
}


@dataclass(frozen=True)
class Sizes:
    """The decoder's. `vocabulary` counts codes with the end's own; embeddings have one row more, for the beginning."""

    layers: int
    width: int
    heads: int
    key_heads: int
    cross_key_heads: int
    codebooks: int
    vocabulary: int
    positions: int
    activation: str
    rotary: bool
    theta: float
    prompt_in_cross: bool
    projected: bool
    joined_heads: bool


@dataclass(frozen=True)
class Drawing:
    """How codes become the next ones. `longest` counts columns with the first, which says only that it begins."""

    begin: int
    end: int
    pad: int
    start: int
    longest: int
    shortest: int
    sampled: bool
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Config:
    """All of config.json and generation_config.json that is needed to speak."""

    sizes: Sizes
    drawing: Drawing
    text_encoder: dict[str, Any]
    prompt_vocabulary: int
    sample_rate: int
    codes: int
    """Codes of one codebook; what is drawn beyond them is no sound."""

    @property
    def one_tokenizer(self) -> bool:
        """Whether text and description are read alike. Where they are not, only the text's tokenizer is beside it."""
        return bool(self.prompt_vocabulary == self.text_encoder["vocab_size"])


def read_config(folder: Path) -> Config:
    """Raises ModelLoadError, naming what is missing or is no Parler-TTS that we know."""
    told = _read(folder / "config.json")
    if told.get("model_type") != "parler_tts":
        raise ModelLoadError(f"{folder} is no Parler-TTS checkpoint: its model_type is {told.get('model_type')!r}")
    path = folder / "generation_config.json"
    generation = _read(path) if path.is_file() else {}
    try:
        text, audio, decoder = told["text_encoder"], told["audio_encoder"], told["decoder"]
        _refuse_others(folder, text, audio, decoder, generation)
        return Config(
            _sizes(told, text, decoder),
            _drawing(decoder, generation, int(audio.get("frame_rate") or 86)),
            text,
            int(told["vocab_size"]),
            int(audio["sampling_rate"]),
            int(audio["codebook_size"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{folder / 'config.json'}: {type(error).__name__}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from None
    if not isinstance(told, dict):
        raise ModelLoadError(f"{path} holds no settings")
    return told


def _refuse_others(folder: Path, text: Any, audio: Any, decoder: Any, generation: Mapping[str, Any]) -> None:
    faults = []
    if text.get("model_type") != "t5":
        faults.append(f"its text encoder is {text.get('model_type')!r}, not 't5'")
    if audio.get("model_type") not in _CODECS:
        faults.append(f"its codec is {audio.get('model_type')!r}, not the Descript Audio Codec ('dac')")
    if decoder.get("activation_function", "gelu") not in ACTIVATIONS:
        faults.append(f"its activation {decoder['activation_function']!r} is none of {', '.join(ACTIVATIONS)}")
    if (crossed := decoder.get("cross_attention_hidden_size")) not in (None, decoder.get("hidden_size")):
        faults.append(f"its cross attention is {crossed} wide, its decoder {decoder.get('hidden_size')}")
    faults += [
        f"its generation_config.json wants {name} {generation[name]}"
        for name, neutral in _NEUTRAL.items()
        if generation.get(name) not in neutral
    ]
    if faults:
        raise ModelLoadError(f"{folder} is a variant of Parler-TTS that is not supported: {'; '.join(faults)}")


def _sizes(told: Mapping[str, Any], text: Mapping[str, Any], decoder: Mapping[str, Any]) -> Sizes:
    heads, width = int(decoder["num_attention_heads"]), int(decoder["hidden_size"])
    key_heads = int(decoder.get("num_key_value_heads") or heads)
    cross_key_heads = int(decoder.get("num_cross_attention_key_value_heads") or key_heads)
    if width % heads or heads % key_heads or heads % cross_key_heads:
        raise ValueError(f"{width} numbers and {key_heads}, {cross_key_heads} keys do not divide among {heads} heads")
    return Sizes(
        layers=int(decoder["num_hidden_layers"]),
        width=width,
        heads=heads,
        key_heads=key_heads,
        cross_key_heads=cross_key_heads,
        codebooks=int(decoder["num_codebooks"]),
        vocabulary=int(decoder["vocab_size"]),
        positions=int(decoder["max_position_embeddings"]),
        activation=str(decoder.get("activation_function", "gelu")),
        rotary=bool(decoder.get("rope_embeddings", False)),
        theta=float(decoder.get("rope_theta", 10_000.0)),
        prompt_in_cross=bool(told.get("prompt_cross_attention", False)),
        projected=decoder.get("cross_attention_hidden_size") is None and int(text["d_model"]) != width,
        joined_heads=bool(decoder.get("use_fused_lm_heads", False)),
    )


def _drawing(decoder: Mapping[str, Any], generation: Mapping[str, Any], frame_rate: int) -> Drawing:
    def token(name: str) -> int:
        return int(generation[name] if generation.get(name) is not None else decoder[name])

    longest = generation.get("max_length") or _SECONDS * frame_rate
    if generation.get("max_new_tokens"):
        longest = int(generation["max_new_tokens"]) + 1
    start, begin = generation.get("decoder_start_token_id"), token("bos_token_id")
    return Drawing(
        begin=begin,
        end=token("eos_token_id"),
        pad=token("pad_token_id"),
        start=begin if start is None else int(start),
        longest=int(longest),
        shortest=max(int(generation.get("min_new_tokens") or 0), int(generation.get("min_length") or 0) - 1),
        sampled=bool(generation.get("do_sample", False)),
        temperature=float(generation.get("temperature") or 1.0),
        # What transformers takes where the file says nothing; a 0 or null there is no limit.
        top_k=int(generation.get("top_k", 50) or 0),
        top_p=float(generation.get("top_p") or 1.0),
    )


def weight_files(folder: Path) -> list[Path]:
    """The one file, or those that an index names. Raises ModelLoadError."""
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    index = folder / f"{SAFE}.index.json"
    if not index.is_file():
        raise ModelLoadError(f"{folder} has no weights: neither {SAFE} nor {index.name}")
    names = sorted(set(_read(index).get("weight_map", {}).values()))
    # The index comes with the weights: what it names is a file beside it, and nothing else.
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ModelLoadError(f"{index} names {strange[0]!r}, which is no file of the model's folder")
    return [folder / name for name in names]


Progress = Callable[[int, int], None]
"""Told how many weights are taken, of how many."""


class Weights:
    """Weights by name, each taken once, so that a missing or misshapen one is named.

    They come as copies, on the CPU: what looks into a file keeps all of it in the process's memory.
    """

    def __init__(self, tensors: Mapping[str, Any], folder: Path, progress: Progress = lambda *_: None) -> None:
        """`tensors` are tensors, or files that have them."""
        self.folder = folder
        self._tensors = dict(tensors)
        self._count = len(tensors)
        self._progress = progress

    @classmethod
    def of(cls, folder: Path, wanted: Callable[[str], bool], progress: Progress = lambda *_: None) -> "Weights":
        """Of a checkpoint: one safetensors file or, of a large one, several. Raises ModelLoadError."""
        places = {}
        for path in weight_files(folder):
            with _opened(path) as file:
                places.update({name: path for name in file.keys() if wanted(name)})  # noqa: SIM118
        return cls(places, folder, progress)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def take(self, name: str, *shape: int) -> Any:
        """Raises ModelLoadError if it is not there or, where a shape is said, has another one."""
        if name not in self._tensors:
            raise ModelLoadError(f"{self.folder}: the weights lack {name}")
        tensor = self._read([name])[name]
        if shape and tuple(tensor.shape) != shape:
            raise ModelLoadError(f"{self.folder}: {name} is {tuple(tensor.shape)}, not {shape} as config.json says")
        return tensor

    def take_all(self, prefix: str) -> dict[str, Any]:
        """Those under a prefix, without it."""
        names = [name for name in self._tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor for name, tensor in self._read(names).items()}

    def _read(self, names: list[str]) -> dict[str, Any]:
        places = {name: self._tensors.pop(name) for name in names}
        self._progress(self._count - len(self._tensors), self._count)
        found = {name: place for name, place in places.items() if not isinstance(place, Path)}
        for path in {place for place in places.values() if isinstance(place, Path)}:
            with _opened(path) as file:
                for name in names:
                    if name not in found and places[name] == path:
                        found[name] = file.get_tensor(name).clone()
        return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path}: {error}") from None
