"""Whisper in CTranslate2's own format, of any size, that always says the same.

The encoder's weights are random. The decoder's layers add nothing, so that each token depends on the one before alone,
and a table says which one follows: `sot` → language → task → <|0.00|> → the words → <|2.00|> → end.
"""

import json
import re
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sidecar.capabilities.languages import LANGUAGES

SAYS = " Hello wonderful world."
TRANSLATES = " This was foreign!"
_MELS, _FRAMES, _TEXT = 80, 1500, 448


def write_whisper(folder: Path, multilingual: bool = False, width: int = 64, layers: int = 1, seed: int = 0) -> Path:
    """`model.bin`, `config.json`, `vocabulary.json`, `tokenizer.json`, `preprocessor_config.json`."""
    tokens = _tokens(multilingual)
    ids = {token: number for number, token in enumerate(tokens)}
    heads = max(2, width // 64)
    spec = ctranslate2.specs.WhisperSpec(layers, heads, layers, heads)
    _fill_encoder(spec.encoder, width, np.random.default_rng(seed))
    _fill_decoder(spec.decoder, width, ids, multilingual)
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [ids["<|endoftext|>"]]
    spec.config.lang_ids = [ids[f"<|{code}|>"] for code in list(LANGUAGES)[:99]]
    spec.config.alignment_heads = [(0, 0)]
    spec.validate()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    _write_tokenizer(folder, tokens)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": _MELS}), encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """What a hub would serve."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _pieces(text: str) -> list[str]:
    return [piece.replace(" ", "Ġ") for piece in re.sub(r"([ .!])", "\0\\1", text).split("\0") if piece]


def _tokens(multilingual: bool) -> list[str]:
    """The real ones' sizes and places; CTranslate2 knows the multilingual models by their empty token."""
    text = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *_pieces(SAYS)[:-1],
        *_pieces(TRANSLATES)[:-1],
    ]  # . ! are in it
    text += [f"unused{number}" for number in range(len(text), 50_256)]
    text += [""] if multilingual else []
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:99]]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
    return [*text, "<|endoftext|>", "<|startoftranscript|>", *languages, *tasks, *times]


def _write_tokenizer(folder: Path, tokens: list[str]) -> None:
    end = tokens.index("<|endoftext|>")
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens[end:]])
    made.save(str(folder / "tokenizer.json"))


def _norm(spec: Any, width: int) -> None:
    spec.gamma, spec.beta = np.ones(width, np.float32), np.zeros(width, np.float32)


def _linear(spec: Any, weight: Any) -> None:
    spec.weight = np.ascontiguousarray(weight, np.float32)
    spec.bias = np.zeros(len(weight), np.float32)


def _fill_encoder(spec: Any, width: int, chance: np.random.Generator) -> None:
    def some(*shape: int) -> Any:
        return chance.normal(0, 0.02, shape).astype(np.float32)

    for convolution, channels in ((spec.conv1, _MELS), (spec.conv2, width)):
        convolution.weight, convolution.bias = some(width, channels, 3), np.zeros(width, np.float32)
    spec.position_encodings.encodings = some(_FRAMES, width)
    _norm(spec.layer_norm, width)
    for layer in spec.layer:
        _norm(layer.self_attention.layer_norm, width)
        _linear(layer.self_attention.linear[0], some(3 * width, width))
        _linear(layer.self_attention.linear[1], some(width, width))
        _fill_feed_forward(layer.ffn, some(4 * width, width), some(width, 4 * width))


def _fill_feed_forward(spec: Any, into: Any, out: Any) -> None:
    _norm(spec.layer_norm, into.shape[1])
    _linear(spec.linear_0, into)
    _linear(spec.linear_1, out)


def _fill_decoder(spec: Any, width: int, ids: dict[str, int], multilingual: bool) -> None:
    chance = np.random.default_rng(1)
    spec.position_encodings.encodings = np.zeros((_TEXT, width), np.float32)
    _norm(spec.layer_norm, width)
    for layer in spec.layer:
        for attention, shapes in ((layer.self_attention, (3, 1)), (layer.attention, (1, 2, 1))):
            _norm(attention.layer_norm, width)
            for linear, count in zip(attention.linear, shapes, strict=True):
                _linear(linear, np.zeros((count * width, width)))
        # It looks somewhere, which gives words their times; what it sees is multiplied by nothing.
        for linear in layer.attention.linear[:2]:
            linear.weight[:width] = chance.normal(0, 0.5, (width, width))
        _fill_feed_forward(layer.ffn, np.zeros((4 * width, width)), np.zeros((width, 4 * width)))
    follows = _chain(multilingual)
    places = {token: place for place, token in enumerate(follows)}
    spec.embeddings.weight = np.zeros((len(ids), width), np.float32)
    spec.projection.weight = np.zeros((len(ids), width), np.float32)
    spec.projection.bias = np.zeros(len(ids), np.float32)
    for token, following in follows.items():
        spec.embeddings.weight[ids[token], places[token]] = 10.0
        spec.projection.weight[ids[following], places[token]] = 10.0
    assert len(follows) <= width


def _chain(multilingual: bool) -> dict[str, str]:
    """What follows what."""
    chain: dict[str, str] = {}

    def say(*tokens: str) -> None:
        chain.update(zip(tokens, [*tokens[1:], "<|endoftext|>"], strict=True))

    start = "<|transcribe|>" if multilingual else "<|startoftranscript|>"
    say(start, "<|0.00|>", *_pieces(SAYS), "<|2.00|>")
    chain["<|notimestamps|>"] = _pieces(SAYS)[0]
    if multilingual:
        chain["<|startoftranscript|>"] = "<|de|>"
        # Each token has one place in the chain: other times, another full stop.
        say("<|translate|>", "<|0.10|>", *_pieces(TRANSLATES), "<|1.50|>")
    return chain
