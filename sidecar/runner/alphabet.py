"""eSpeak's IPA in the alphabet that Kokoro was taught, which has one letter for each diphthong and affricate.

The correspondences are those of misaki (the tool its training texts were prepared with), for phonemes whose letters
are joined by TIE.
"""

import re

TIE = "^"

_DIPHTHONGS = (("a^ɪ", "I"), ("a^ʊ", "W"), ("d^ʒ", "ʤ"), ("e^ɪ", "A"), ("t^ʃ", "ʧ"), ("ɔ^ɪ", "Y"))
_ENGLISH = (
    *(("ʔˌn\u0329", "tᵊn"), ("ʔn", "tᵊn"), *_DIPHTHONGS, ("ə^l", "ᵊl"), ("ʲO", "jO"), ("ʲQ", "jQ"), ("\u0303", "")),
    *(("e", "A"), ("r", "ɹ"), ("x", "k"), ("ç", "k"), ("ɐ", "ə"), ("ɚ", "əɹ"), ("ɬ", "l"), ("ʔ", "t"), ("ʲ", "")),
)
_BRITISH_FIRST = (("e^ə", "ɛː"), ("i^ə", "ɪə"), ("iə", "ɪə"), ("ə^ʊ", "Q"))
_AMERICAN_LAST = (("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪ^ə", "iə"), ("ɪə", "iə"), ("ː", ""))
_ENGLISH_LAST = (("o", "ɔ"), ("ɾ", "T"))
_OTHERS = (*_DIPHTHONGS, ("d^z", "ʣ"), ("o^ʊ", "O"), ("ə^ʊ", "Q"), ("s^s", "S"), ("t^s", "ʦ"))
_NAMES = {
    **{"A": "eɪ", "I": "aɪ", "O": "oʊ", "Q": "əʊ", "W": "aʊ", "Y": "ɔɪ"},
    **{"S": "s", "T": "ɾ", "ʤ": "dʒ", "ʣ": "dz", "ʦ": "ts", "ʧ": "tʃ", "ᵊ": "ə"},
}


def kokoro_symbols(ipa: str, voice: str) -> str:
    """Symbols for the tied IPA of an eSpeak voice ("en-us", "en-gb", "fr", …)."""
    if not voice.startswith("en"):
        return _replaced(ipa, _OTHERS).replace(TIE, "").replace("-", "")
    british = voice == "en-gb"
    if british:
        ipa = _replaced(ipa, _BRITISH_FIRST)
    ipa = _replaced(ipa, _ENGLISH)
    ipa = re.sub("(\\S)\u0329", r"ᵊ\1", ipa)
    if not british:
        ipa = _replaced(ipa, _AMERICAN_LAST)
    return _replaced(ipa, _ENGLISH_LAST).replace(TIE, "")


def kokoro_name(symbol: str) -> str:
    """IPA of one symbol."""
    return _NAMES.get(symbol, symbol)


def _replaced(ipa: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        ipa = ipa.replace(old, new)
    return ipa
