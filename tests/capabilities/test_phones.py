"""ARPABET and IPA."""

import pytest

from sidecar.capabilities.phones import VOWELS, from_ipa, to_ipa


@pytest.mark.parametrize(
    ("phone", "ipa"),
    [("AH0", "ə"), ("AH1", "ˈʌ"), ("AH", "ʌ"), ("ER0", "ɚ"), ("ER1", "ˈɝ"), ("OW2", "ˌoʊ"), ("CH", "tʃ"), ("Y", "j")],
)
def test_arpabet_to_ipa(phone: str, ipa: str) -> None:
    assert to_ipa(phone) == ipa


@pytest.mark.parametrize(
    ("ipa", "phones"),
    [
        ("həlˈoʊ", "HH AH0 L OW1"),
        ("tʃˈɜːtʃ", "CH ER1 CH"),
        ("bˈɑːɹn", "B AA1 R N"),
        ("ˌʌndɚstˈænd", "AH2 N D ER0 S T AE1 N D"),
        ("lˈɪɾəl", "L IH1 T AH0 L"),
        ("fˈaɪɚ", "F AY1 ER0"),
        ("bˈʌʔn̩", "B AH1 T AH0 N"),
        ("stɹˈɛŋθs", "S T R EH1 NG TH S"),
        ("…", ""),
        ("", ""),
    ],
)
def test_ipa_as_espeak_writes_it_to_arpabet(ipa: str, phones: str) -> None:
    assert " ".join(from_ipa(ipa)) == phones


def test_there_and_back() -> None:
    consonants = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()  # noqa: SIM905
    for phone in [*consonants, *(vowel + stress for vowel in VOWELS for stress in "012")]:
        if phone != "ER0":  # the sign of its own
            assert from_ipa(to_ipa(phone)) == [phone]
