"""Voices, known from a model's files alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.catalogue.catalogue import BUILT_IN, read_spec
from sidecar.catalogue.spec import ModelSpec
from sidecar.catalogue.voices import Voice, blend, espeak_name, has_voice, voice_for, voices_of
from tests.product import ROOT
from tests.voices import kokoro_files, piper_files, write

ESPEAK = read_spec(BUILT_IN / "espeak-ng.toml")


def spec_of(runtime: str, folder: Path, files: dict[str, bytes], **options: Any) -> ModelSpec:
    write(folder, files)
    values = {"id": "tiny", "title": "t", "capabilities": ["tts"], "runtime": runtime, "licence": "MIT"}
    paths = [{"path": path} for path in files]
    return ModelSpec.model_validate({**values, "folder": str(folder), "files": paths, "options": options})


def test_espeak_has_its_languages_and_variants() -> None:
    voices = voices_of(ESPEAK)
    assert voices[0] == Voice("en-us", "English (America)", "en-US", "male"), "the model's own is the first"
    by_id = {voice.id: voice for voice in voices}
    assert len(by_id) == len(voices) > 120
    assert by_id["de"].language == "de" and by_id["en-gb-x-rp"].language == "en-GB-x-rp"
    assert by_id["en-us+f3"].gender == "female" and "de+f3" not in by_id
    assert all(has_voice(ESPEAK, voice) for voice in ("de+f3", "fr-fr", "EN-GB", "en-us+Annie"))
    assert not any(has_voice(ESPEAK, voice) for voice in ("klingon", "en-us+", "en-us+x", "", "+f3", "../x"))
    assert (espeak_name("fr-fr"), espeak_name("en-gb+m3")) == ("fr", "en+m3")


@pytest.mark.parametrize(
    ("language", "voice"),
    [
        ("en", "en-us"),
        ("en-US", "en-us"),
        ("en_GB", "en"),
        ("fr", "fr"),
        ("fr-CA", "fr"),
        ("zh-CN", "cmn"),
        ("xx", None),
    ],
)
def test_a_language_finds_its_voice(language: str, voice: str | None) -> None:
    assert voice_for(ESPEAK, language) == voice


def test_kokoro_voices_are_its_files_in_languages_that_can_be_read(tmp_path: Path) -> None:
    files = kokoro_files(af_heart=0.5, bm_george=0.5, ff_siwis=0.5, jf_alpha=0.5, zm_yunxi=0.5, af=0.5)
    spec = spec_of("kokoro", tmp_path, files, voice="bm_george")
    assert voices_of(spec) == (
        Voice("bm_george", "George", "en-GB", "male"),
        Voice("af_heart", "Heart", "en-US", "female"),
        Voice("ff_siwis", "Siwis", "fr-FR", "female"),
    )
    assert has_voice(spec, "af_heart+bm_george") and has_voice(spec, "af_heart(2)+bm_george(0.5)")
    assert not has_voice(spec, "af_heart+jf_alpha") and not has_voice(spec, "+".join(["af_heart"] * 9))
    assert voice_for(spec, "fr") == "ff_siwis"


def test_blends() -> None:
    assert blend("a+b(2)+c(0.5)") == [("a", 1.0), ("b", 2.0), ("c", 0.5)]
    for wrong in ("", "+", "a+", "a(0)", "a(-1)", "a(1e9)", "a b", "a(2", "../a"):
        assert blend(wrong) == []


def test_piper_voices_are_its_speakers(tmp_path: Path) -> None:
    one = spec_of("piper", tmp_path / "one", piper_files(), gender="female")
    assert voices_of(one) == (Voice("en_US-tiny-medium", "Tiny", "en-US", "female"),)
    two = spec_of("piper", tmp_path / "two", piper_files(("anna", "bert")))
    assert [voice.id for voice in voices_of(two)] == ["en_US-tiny-medium#anna", "en_US-tiny-medium#bert"]
    assert has_voice(two, "bert") and not has_voice(two, "carl")


def test_a_model_whose_files_are_not_here_has_no_voices(tmp_path: Path) -> None:
    for name in ("kokoro-82m", "piper-lessac-medium", "parler-tts-mini", "minilm"):
        assert voices_of(read_spec(BUILT_IN / f"{name}.toml")) == ()


def test_no_library_is_loaded_to_know_them() -> None:
    code = (
        "import sys; from sidecar.catalogue.catalogue import BUILT_IN, read_spec\n"
        "from sidecar.catalogue.voices import voices_of\n"
        "assert voices_of(read_spec(BUILT_IN / 'espeak-ng.toml'))\n"
        "print(sorted({'ctypes', 'numpy', 'espeakng_loader'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "numpy" not in done.stdout and "espeakng_loader" not in done.stdout


def test_parler_has_any_voice_and_its_speakers(tmp_path: Path) -> None:
    speakers = {"Jon": "male", "Lea": "female", "Jordan": ""}
    options = {"voice": "described", "speaker": "Lea", "speakers": speakers}
    spec = spec_of("parler", tmp_path, {"config.json": b"{}"}, **options).model_copy(update={"languages": ("en",)})
    voices = voices_of(spec)
    assert [(voice.id, voice.language, voice.gender) for voice in voices] == [
        ("described", "en", None),
        ("Jon", "en", "male"),
        ("Lea", "en", "female"),
        ("Jordan", "en", None),
    ]
    assert voices[0].description == "as `description` says; without one, Lea"
    assert has_voice(spec, "Jon") and not has_voice(spec, "jon") and voice_for(spec, "en-GB") == "described"
    (tmp_path / "config.json").unlink()
    assert voices_of(spec) == (), "not here"
    listed = spec_of("parler", tmp_path, {"config.json": b"{}"}, speakers=["Anu", "Ravi"])
    assert [voice.id for voice in voices_of(listed)] == ["described", "Anu", "Ravi"]
