"""Names of languages."""

import pytest

from sidecar.capabilities.asr import TranscriptionRequest
from sidecar.capabilities.languages import LANGUAGES, language_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("en", "en"), ("EN-us", "en"), (" English ", "en"), ("zh-Hant-TW", "zh"), ("pt_BR", "pt"), ("yue", "yue"),
        ("Haitian Creole", "ht"), ("mandarin", "zh"), ("castilian", "es"), ("iw", "he"), ("nb-NO", "no"), ("fil", "tl"),
    ],
)  # fmt: skip
def test_codes_tags_and_names(text: str, code: str) -> None:
    assert language_code(text) == code and code in LANGUAGES


@pytest.mark.parametrize("text", ["xx", "klingon", "", "🇩🇪", "e" * 5000])
def test_what_is_no_language_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no language"):
        language_code(text)


@pytest.mark.parametrize("text", ["auto", "Auto", "", "  ", None])
def test_auto_and_nothing_have_it_recognised(text: str | None) -> None:
    assert TranscriptionRequest.model_validate({"language": text}).language is None


def test_fields_of_a_form_that_nobody_filled_in_are_absent() -> None:
    blank = dict.fromkeys(
        ("model", "task", "word_timestamps", "temperature", "beam_size", "hotwords", "keep_alive"), ""
    )
    assert TranscriptionRequest.model_validate(blank) == TranscriptionRequest.model_validate({})
