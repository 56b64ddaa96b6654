"""Parler-TTS in the real format of parler-tts-mini-v1 (names, shapes, files), tiny and with random weights.

It babbles until `longest` columns, in a way that hangs on description, text and seed. No part of it needs torch or the
model's own package; what that package makes of such files is in tests/fixtures/parler.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CODES = 1024
HOP, RATE = 512, 44_100
COUNT, WIDTH, POSITIONS = 9, 16, 4096
_VOCABULARY = 1088
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-"
_STRIDES, _CHANNELS, _LATENT = (8, 8, 4, 2), 16, 12

Weights = dict[str, npt.NDArray[np.float32]]


def write_parler(folder: Path, longest: int = 200, seed: int = 0, shards: int = 1, **config: Any) -> Path:
    """`config` goes over config.json; of its parts (`decoder`, …) only what is said changes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = _write_tokenizer(folder)
    told = _config(tokens)
    for name, value in config.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    ids = {"bos_token_id": CODES + 1, "decoder_start_token_id": CODES + 1, "eos_token_id": CODES, "pad_token_id": CODES}
    drawing = {"do_sample": True, "guidance_scale": 1, "max_length": longest, "min_new_tokens": 10}
    (folder / "generation_config.json").write_text(json.dumps({**ids, **drawing}), encoding="utf-8")
    weights = _weights(np.random.default_rng(seed), tokens)
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", weights)
        return folder
    index = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in list(weights)[number::shards]}
        _write_safetensors(folder / name, part)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """What a hub would serve."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _config(tokens: int) -> dict[str, Any]:
    text = {"model_type": "t5", "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    text |= {"vocab_size": tokens, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False}
    text |= {"tie_word_embeddings": False, "_name_or_path": "google/flan-t5-large"}
    audio = {"model_type": "dac", "num_codebooks": COUNT, "codebook_size": CODES, "latent_dim": _LATENT}
    audio |= {"frame_rate": 86, "sampling_rate": RATE, "model_bitrate": 8}
    decoder = {"model_type": "parler_tts_decoder", "vocab_size": _VOCABULARY, "hidden_size": WIDTH, "ffn_dim": 32}
    decoder |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_codebooks": COUNT, "activation_function": "gelu"}
    decoder |= {"max_position_embeddings": POSITIONS, "pad_token_id": CODES, "eos_token_id": CODES}
    decoder |= {"bos_token_id": CODES + 1, "scale_embedding": False, "tie_word_embeddings": False}
    whole = {"model_type": "parler_tts", "architectures": ["ParlerTTSForConditionalGeneration"], "vocab_size": tokens}
    return {**whole, "text_encoder": text, "audio_encoder": audio, "decoder": decoder, "transformers_version": "4.43.3"}


def _write_tokenizer(folder: Path) -> int:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((letter, -5.0) for letter in _LETTERS)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}', encoding="utf-8")
    return len(pieces)


def _weights(source: np.random.Generator, tokens: int) -> Weights:
    def random(*shape: int, spread: float = 1.0) -> npt.NDArray[np.float32]:
        return source.normal(0, spread, shape).astype(np.float32)

    weights = {"embed_prompts.weight": random(tokens, WIDTH), **_text_encoder(random, tokens)}
    weights |= {**_decoder(random), **_codec(random)}
    return weights


def _text_encoder(random: Any, tokens: int) -> Weights:
    stem = "text_encoder.encoder.block.0.layer"
    weights = {"text_encoder.shared.weight": random(tokens, WIDTH)}
    weights |= {f"{stem}.0.SelfAttention.{name}.weight": random(WIDTH, WIDTH) for name in "qkvo"}
    weights[f"{stem}.0.SelfAttention.relative_attention_bias.weight"] = random(32, 2)
    weights |= {f"{stem}.1.DenseReluDense.{name}.weight": random(24, WIDTH) for name in ("wi_0", "wi_1")}
    weights[f"{stem}.1.DenseReluDense.wo.weight"] = random(WIDTH, 24)
    norms = (f"{stem}.0.layer_norm", f"{stem}.1.layer_norm", "text_encoder.encoder.final_layer_norm")
    return weights | {f"{name}.weight": np.ones(WIDTH, np.float32) for name in norms}


def _decoder(random: Any) -> Weights:
    stem = "decoder.model.decoder"
    weights = {f"{stem}.embed_tokens.{number}.weight": random(_VOCABULARY + 1, WIDTH) for number in range(COUNT)}
    half = np.exp(np.arange(WIDTH // 2) * -(np.log(10_000) / (WIDTH // 2 - 1)))
    angles = np.arange(POSITIONS)[:, None] * half
    weights[f"{stem}.embed_positions.weights"] = np.hstack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    layer = f"{stem}.layers.0"
    for kind in ("self_attn", "encoder_attn"):
        weights |= {f"{layer}.{kind}.{name}_proj.weight": random(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    weights |= {f"{layer}.fc1.weight": random(32, WIDTH), f"{layer}.fc2.weight": random(WIDTH, 32)}
    inner = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    for name in (*(f"{layer}.{each}" for each in inner), f"{stem}.layer_norm"):
        weights |= {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}
    # One number of the last layer is the same for every input; by it, nothing but codes is ever drawn.
    weights[f"{stem}.layer_norm.weight"][0], weights[f"{stem}.layer_norm.bias"][0] = 0, 10
    for number in range(COUNT):
        head = weights[f"decoder.lm_heads.{number}.weight"] = random(_VOCABULARY, WIDTH)
        head[:CODES, 0], head[CODES:, 0] = 0, -10
    return weights


def _codec(random: Any) -> Weights:
    weights: Weights = {}

    def convolution(name: str, *shape: int, out: int | None = None) -> None:
        weights[f"{name}.weight_v"], weights[f"{name}.bias"] = random(*shape), random(out or shape[0], spread=0.05)
        weights[f"{name}.weight_g"] = np.ones((shape[0], *[1] * (len(shape) - 1)), np.float32)

    stem = "audio_encoder.model"
    # Of the half that listens, which speaking has no use for.
    convolution(f"{stem}.encoder.block.0", 4, 1, 7)
    for number in range(COUNT):
        quantizer = f"{stem}.quantizer.quantizers.{number}"
        weights[f"{quantizer}.codebook.weight"] = random(CODES, 4)
        convolution(f"{quantizer}.in_proj", 4, _LATENT, 1)
        convolution(f"{quantizer}.out_proj", _LATENT, 4, 1)
    convolution(f"{stem}.decoder.model.0", _CHANNELS, _LATENT, 7)
    channels = _CHANNELS
    for number, stride in enumerate(_STRIDES, 1):
        block = f"{stem}.decoder.model.{number}.block"
        weights[f"{block}.0.alpha"] = np.ones((1, channels, 1), np.float32)
        convolution(f"{block}.1", channels, channels // 2, 2 * stride, out=channels // 2)
        channels //= 2
        for unit in (2, 3, 4):
            for part in (0, 2):
                weights[f"{block}.{unit}.block.{part}.alpha"] = np.ones((1, channels, 1), np.float32)
            convolution(f"{block}.{unit}.block.1", channels, channels, 7)
            convolution(f"{block}.{unit}.block.3", channels, channels, 1)
    weights[f"{stem}.decoder.model.5.alpha"] = np.ones((1, channels, 1), np.float32)
    convolution(f"{stem}.decoder.model.6", 1, channels, 7)
    weights[f"{stem}.decoder.model.6.weight_g"] *= np.float32(0.02)  # loud, and not beyond its limit
    return weights


def _write_safetensors(path: Path, weights: Weights) -> None:
    """Little-endian length, that many bytes of JSON, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [place, place + values.nbytes]}
        place += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in weights.values()))
