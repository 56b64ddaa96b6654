"""The voices of a speech model, read from its files: nothing has to be loaded to know them."""

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.catalogue.spec import ModelSpec


class Voice(NamedTuple):
    """`language` is a BCP 47 tag, `gender` "female", "male" or None where nobody says.

    `description` is there where the name does not say enough.
    """

    id: str
    name: str
    language: str
    gender: str | None
    description: str | None = None


def voices_of(spec: ModelSpec) -> tuple[Voice, ...]:
    """All voices, the model's own first; none where its files are not here."""
    read = _READERS.get(spec.runtime)
    found = tuple(read(spec)) if read is not None else ()
    own = spec.options.get("voice")
    return tuple(sorted(found, key=lambda voice: voice.id != own))


def has_voice(spec: ModelSpec, voice: str) -> bool:
    """Whether the model speaks with this voice, or with this blend or variant of voices."""
    known = {each.id for each in voices_of(spec)}
    if voice in known:
        return True
    if spec.runtime == "kokoro":
        parts = blend(voice)
        return len(parts) <= _LONGEST_BLEND and bool(parts) and all(name in known for name, _ in parts)
    if spec.runtime == "espeak":
        return espeak_name(voice) is not None
    return spec.runtime == "piper" and any(each.id.endswith(f"#{voice}") for each in voices_of(spec))


def voice_for(spec: ModelSpec, language: str) -> str | None:
    """The model's first voice of the very language (BCP 47), else of another country's; None if it has none."""
    wanted = language.lower().replace("_", "-")
    tags = [(voice.language.lower(), voice.id) for voice in voices_of(spec)]
    exact = (voice for tag, voice in tags if tag == wanted)
    near = (voice for tag, voice in tags if tag.split("-")[0] == wanted.split("-")[0])
    found = next(exact, None) or next(near, None)
    if found is None and spec.runtime == "espeak":  # "zh" is in "cmn"
        return _espeak_codes().get(wanted) or _espeak_codes().get(wanted.split("-")[0])
    return found


# Kokoro: a file per voice, whose first letters are language and gender.

_KOKORO_LANGUAGES = {"a": "en-US", "b": "en-GB", "e": "es", "f": "fr-FR", "h": "hi", "i": "it", "p": "pt-BR"}
_GENDERS = {"f": "female", "m": "male"}
_LONGEST_BLEND = 8


def blend(voice: str) -> list[tuple[str, float]]:
    """ "af_bella(2)+af_sky" as names and weights; one weighs 1 where none is said. Nothing for what is no blend."""
    parts = [re.fullmatch(r"(\w+)(?:\((\d{1,3}(?:\.\d{1,3})?)\))?", part.strip()) for part in voice.split("+")]
    weighed = [(part[1], float(part[2] or 1)) for part in parts if part is not None]
    return weighed if len(weighed) == len(parts) and all(weight > 0 for _, weight in weighed) else []


def _kokoro(spec: ModelSpec) -> Iterator[Voice]:
    for path in sorted((spec.folder / "voices").glob("*.bin")):
        code = path.stem
        if re.fullmatch(r"[a-z][fm]_\w+", code) and code[0] in _KOKORO_LANGUAGES:
            yield Voice(code, code[3:].capitalize(), _KOKORO_LANGUAGES[code[0]], _GENDERS[code[1]])


# Piper: a file per voice, which may have several speakers.


def _piper(spec: ModelSpec) -> Iterator[Voice]:
    path = spec.folder / f"{spec.graph}.json"
    if spec.graph is None or not path.is_file():
        return
    config = _config(path, path.stat().st_mtime_ns)
    code = config.get("language", {}).get("code") or config.get("espeak", {}).get("voice") or "und"
    stem = path.name.removesuffix(".onnx.json")
    name, gender, language = str(config.get("dataset") or stem), spec.options.get("gender"), str(code).replace("_", "-")
    speakers = config.get("speaker_id_map") or {}
    if len(speakers) < 2:
        yield Voice(stem, name.capitalize(), language, gender)
    for speaker in speakers if len(speakers) > 1 else ():
        yield Voice(f"{stem}#{speaker}", f"{name.capitalize()} {speaker}", language, None)


@lru_cache(maxsize=64)
def _config(path: Path, changed_ns: int) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


# Parler-TTS: any voice that is described, and speakers that the model knows by their names.

DESCRIBED = "described"


def _parler(spec: ModelSpec) -> Iterator[Voice]:
    if not (spec.folder / "config.json").is_file():
        return
    language = spec.languages[0] if spec.languages else "und"
    speakers = spec.options.get("speakers", {})
    own = spec.options.get("speaker") or next(iter(speakers), "any speaker")
    yield Voice(DESCRIBED, "As described", language, None, f"as `description` says; without one, {own}")
    for name in speakers:
        gender = speakers[name] if isinstance(speakers, dict) else None
        what = f"{name}, a speaker the model was trained with; `description` and `emotion` say how"
        yield Voice(name, name, language, gender or None, what)


# eSpeak NG: a text file per language, and one per variant of the voice that speaks them all.

# Of the many variants those that differ as people do; any other one can be asked for by its name, too.
_SHOWN_VARIANTS = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "whisper", "whisperf")


def _espeak(spec: ModelSpec) -> Iterator[Voice]:
    languages = [language.voice for language in _espeak_languages()]
    yield from languages
    for voice in languages:
        if voice.language in spec.languages:
            for variant in _SHOWN_VARIANTS:
                gender = _GENDERS[variant[0]] if variant[0] in _GENDERS else "female" if variant[-1] == "f" else "male"
                yield Voice(f"{voice.id}+{variant}", f"{voice.name}, {variant}", voice.language, gender)


@lru_cache(maxsize=1)
def _espeak_data() -> Path | None:
    found = find_spec("espeakng_loader")
    return Path(found.origin).parent / "espeak-ng-data" if found and found.origin else None


def espeak_name(voice: str) -> str | None:
    """The library's name of a voice: a language's own, or a code for it ("fr-fr" is "fr"), and a variant."""
    language, plus, variant = voice.partition("+")
    name = _espeak_codes().get(language.lower())
    return None if name is None or (plus and variant not in _espeak_variants()) else name + plus + variant


class _Language(NamedTuple):
    """A voice, and all codes that stand for it."""

    voice: Voice
    codes: list[str]


@lru_cache(maxsize=1)
def _espeak_languages() -> tuple[_Language, ...]:
    data = _espeak_data()
    paths = sorted(path for path in (data / "lang").rglob("*") if path.is_file()) if data else []
    return tuple(language for path in paths if data and (language := _read_language(path, data)))


def _read_language(path: Path, data: Path) -> _Language | None:
    text = path.read_text("utf-8", "replace")
    told = dict(re.findall(r"(?m)^(name|gender|dictionary) +(\S.*?)\s*$", text))
    codes = [code.lower() for code in re.findall(r"(?m)^language +(\S+)", text)]
    # Some are listed without the dictionary that they need.
    if not codes or not (data / f"{told.get('dictionary', codes[0].split('-')[0])}_dict").is_file():
        return None
    name = path.name.lower()  # by which the library finds it
    return _Language(Voice(name, told.get("name", name), _tag(codes[0]), told.get("gender", "male")), [name, *codes])


@lru_cache(maxsize=1)
def _espeak_codes() -> dict[str, str]:
    """Voice by code: a voice's own name first, then the codes that it stands for, the preferred ones first."""
    codes = {language.voice.id: language.voice.id for language in _espeak_languages()}
    for language in _espeak_languages():
        for code in language.codes:
            codes.setdefault(code, language.voice.id)
    return codes


@lru_cache(maxsize=1)
def _espeak_variants() -> frozenset[str]:
    data = _espeak_data()
    return frozenset(path.name for path in (data / "voices" / "!v").iterdir()) if data else frozenset()


def _tag(code: str) -> str:
    """eSpeak's lower-case code as BCP 47 writes it: en-gb-x-rp is en-GB-x-rp."""
    head, private, tail = code.partition("-x-")
    language, *rest = head.split("-")
    return "-".join([language, *(part.upper() if len(part) == 2 else part.title() for part in rest)]) + private + tail


_READERS: dict[str, Callable[[ModelSpec], Iterator[Voice]]] = {
    "espeak": _espeak,
    "kokoro": _kokoro,
    "parler": _parler,
    "piper": _piper,
}
