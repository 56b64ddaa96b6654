"""What a checkpoint's files say, and what of it is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import ModelLoadError
from sidecar.runner.parler.checkpoint import Weights, read_config, weight_files
from sidecar.runner.parler.codec import is_needed
from tests.product import ROOT
from tests.tiny_parler import write_parler

FIXTURES = ROOT / "tests" / "fixtures" / "parler"


def generation(folder: Path, **values: Any) -> Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return folder


def test_the_form_of_mini_v1(tmp_path: Path) -> None:
    config = read_config(write_parler(tmp_path, longest=2580))
    sizes, drawing = config.sizes, config.drawing
    assert (sizes.codebooks, sizes.vocabulary, sizes.positions, sizes.key_heads) == (9, 1088, 4096, 2)
    assert not (sizes.rotary or sizes.prompt_in_cross or sizes.projected or sizes.joined_heads)
    assert (drawing.begin, drawing.end, drawing.start, drawing.longest, drawing.shortest) == (
        1025,
        1024,
        1025,
        2580,
        10,
    )
    assert drawing.sampled and drawing.top_k == 50, "what transformers 4.46 takes where the file says nothing"
    assert (config.sample_rate, config.codes, config.one_tokenizer) == (44_100, 1024, True)


def test_the_form_with_all_variants() -> None:
    config = read_config(FIXTURES / "cross")
    sizes = config.sizes
    assert sizes.rotary and sizes.prompt_in_cross and sizes.projected and sizes.joined_heads
    assert (sizes.key_heads, sizes.cross_key_heads, sizes.activation) == (2, 1, "relu")
    assert not config.one_tokenizer


def test_how_codes_are_drawn_may_be_said(tmp_path: Path) -> None:
    folder = generation(
        write_parler(tmp_path), max_new_tokens=99, top_k=None, top_p=0.9, temperature=0.7, min_length=31
    )
    drawing = read_config(folder).drawing
    assert (drawing.longest, drawing.top_k, drawing.top_p, drawing.temperature) == (100, 0, 0.9, 0.7)
    assert drawing.shortest == 30
    (folder / "generation_config.json").unlink()
    drawing = read_config(folder).drawing
    assert (drawing.end, drawing.longest, drawing.sampled) == (1024, 30 * 86, False), "the decoder's own, and 30 s"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "musicgen"}, "no Parler-TTS checkpoint: its model_type is 'musicgen'"),
        ({"text_encoder": {"model_type": "bert"}}, "text encoder is 'bert'"),
        ({"audio_encoder": {"model_type": "encodec"}}, "codec is 'encodec'"),
        ({"decoder": {"activation_function": "swiglu"}}, "'swiglu' is none of gelu"),
        ({"decoder": {"cross_attention_hidden_size": 7}}, "cross attention is 7 wide"),
        ({"decoder": {"num_key_value_heads": 3}}, "do not divide among 2 heads"),
        ({"decoder": {"hidden_size": "wide"}}, r"config\.json: ValueError"),
    ],
)
def test_other_variants_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        read_config(write_parler(tmp_path, **changed))


@pytest.mark.parametrize(("name", "value"), [("guidance_scale", 3.0), ("num_beams", 4), ("repetition_penalty", 1.2)])
def test_other_ways_of_drawing_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ModelLoadError, match=f"wants {name} {value}"):
        read_config(generation(write_parler(tmp_path), **{name: value}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": "parler_tts"}', "\x00"])
def test_a_config_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"config\.json|no Parler-TTS"):
        read_config(tmp_path)


@pytest.mark.parametrize("strange", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, strange: Any) -> None:
    folder = write_parler(tmp_path, shards=2)
    index = {"weight_map": {"embed_prompts.weight": strange}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="no file of the model's folder"):
        weight_files(folder)


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    class Tensor:
        shape = (2, 3)

    weights = Weights({"a": Tensor(), "b.c": Tensor(), "b.d": Tensor()}, tmp_path)
    with pytest.raises(ModelLoadError, match=r"a is \(2, 3\), not \(3, 2\)"):
        weights.take("a", 3, 2)
    with pytest.raises(ModelLoadError, match="lack x"):
        weights.take("x")
    assert sorted(weights.take_all("b.")) == ["c", "d"] and weights.names() == []


def test_the_listening_half_of_the_codec_stays_in_the_file() -> None:
    stem = "audio_encoder.model"
    assert is_needed("decoder.lm_heads.0.weight") and is_needed(
        "text_encoder.encoder.block.0.layer.0.layer_norm.weight"
    )
    assert is_needed(f"{stem}.decoder.model.0.bias") and is_needed("audio_encoder.decoder.conv1.bias")
    assert is_needed(f"{stem}.quantizer.quantizers.0.out_proj.bias")
    for name in (f"{stem}.encoder.block.0.bias", "audio_encoder.encoder.conv1.bias"):
        assert not is_needed(name)
    assert not is_needed(f"{stem}.quantizer.quantizers.0.in_proj.bias")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = write_parler(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        weight_files(folder)
