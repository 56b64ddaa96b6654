"""The phones of English in ARPABET (as in the CMU dictionary: vowels end in their stress, 0, 1 or 2) and in IPA."""

VOWELS = frozenset("AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split())  # noqa: SIM905 (one list, one line)
_IPA = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AH0": "ə", "AO": "ɔ", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d",
    "DH": "ð", "EH": "ɛ", "ER": "ɝ", "ER0": "ɚ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "i",
    "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ", "S": "s",
    "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
_MARKS = {"1": "ˈ", "2": "ˌ"}

# eSpeak NG's names for the sounds of its English voices, and the ARPABET phones that come nearest. What is British or
# Scottish is taken for what an American would say there.
_FROM_IPA = {
    "a": "AE", "aː": "AA", "æ": "AE", "ɐ": "AH", "ɑ": "AA", "ɑː": "AA", "ɒ": "AA", "ɔ": "AO", "ɔː": "AO", "o": "OW",
    "oː": "AO", "ə": "AH", "ɚ": "ER", "ɛ": "EH", "ɛː": "EH", "e": "EH", "eː": "EY", "ɜ": "ER", "ɜː": "ER", "ɝ": "ER",
    "ɪ": "IH", "ᵻ": "IH", "i": "IY", "iː": "IY", "ʊ": "UH", "ʉ": "UW", "ʉː": "UW", "u": "UW", "uː": "UW", "ʌ": "AH",
    "aɪ": "AY", "aʊ": "AW", "eɪ": "EY", "oʊ": "OW", "əʊ": "OW", "ɔɪ": "OY", "aɪə": "AY AH", "aɪɚ": "AY ER",
    "aʊə": "AW AH", "iə": "IY AH", "ɪə": "IH R", "eə": "EH R", "ʊə": "UH R", "ɜːɹ": "ER", "əl": "AH L", "n̩": "AH N",
    "l̩": "AH L", "m̩": "AH M", "b": "B", "d": "D", "dʒ": "JH", "f": "F", "ɡ": "G", "g": "G", "h": "HH", "j": "Y",
    "k": "K", "x": "K", "ç": "HH", "l": "L", "ɫ": "L", "ɬ": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R",
    "r": "R", "ɾ": "T", "ʁ": "R", "s": "S", "ʃ": "SH", "t": "T", "ʔ": "T", "tʃ": "CH", "θ": "TH", "ð": "DH", "v": "V",
    "w": "W", "ʍ": "W", "z": "Z", "ʒ": "ZH", "ɑ̃": "AA N", "ɔ̃": "AO N", "ɛ̃": "EH N", "y": "Y UW", "ø": "ER",
    "ɲ": "N Y", "ɨ": "IH", "ɯ": "UW", "q": "K", "ɣ": "G", "ɕ": "SH", "ɭ": "L", "ts": "T S",
}  # fmt: skip
_LONGEST = max(map(len, _FROM_IPA))
_STRESS = {"ˈ": "1", "ˌ": "2"}


def to_ipa(phone: str) -> str:
    """IPA of an ARPABET phone, with the stress mark in front; an unstressed "AH0" is "ə"."""
    base = phone.rstrip("012")
    stress = phone[len(base) :]
    return _MARKS.get(stress, "") + (_IPA.get(base + stress) or _IPA[base])


def from_ipa(text: str) -> list[str]:
    """ARPABET phones of an IPA transcription in eSpeak NG's manner, vowels with their stress; the rest is skipped."""
    phones: list[str] = []
    stress = "0"
    at = 0
    while at < len(text):
        stress = _STRESS.get(text[at], stress)
        for length in range(min(_LONGEST, len(text) - at), 0, -1):
            found = _FROM_IPA.get(text[at : at + length])
            if found:
                for phone in found.split():
                    phones.append(phone + stress if phone in VOWELS else phone)
                    stress = "0" if phone in VOWELS else stress
                at += length
                break
        else:
            at += 1
    return phones
