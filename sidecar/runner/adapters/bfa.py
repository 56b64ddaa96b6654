"""The Bournemouth Forced Aligner 2, a plugin: it is under the GPL, so it lives in a profile and a process of its own.

Written against bournemouth-forced-aligner 2.0.0 with its ph66 phonemes (eSpeak NG's, reduced to 66) and the models
`Tabahi/CUPE-3-*`, released as `config.json` and `model.safetensors`. Everything is read from the model's folder.
"""

import itertools
import os
import re
from collections.abc import Iterable
from typing import Any

from sidecar.capabilities.align import Alignment, Spoken
from sidecar.capabilities.phones import from_ipa
from sidecar.capabilities.recording import SAMPLE_RATE
from sidecar.errors import InputError, ModelLoadError
from sidecar.runner import torch_device
from sidecar.runner.adapters import BaseAdapter, Report
from sidecar.runner.espeak_text import parts

_SILENCE = "SIL"
_PAUSE = "<SIL>"
_SHORTEST = SAMPLE_RATE // 20
_PADDED_S = 1.0
# Its own splitting takes "don't" for "don" and "t".
_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[.,!?;:]")


class BfaAdapter(BaseAdapter):
    """Offers `Aligns`. Confidences are the network's own, which stay low by the way it was trained: a phone below 0.2
    counts as doubtful to its authors. ARPABET comes without stress, which ph66 does not know.

    `options.boundary_bonus_weight` draws borders to where the sound changes most; `options.language` is eSpeak NG's.
    """

    def load(self, report: Report) -> None:
        if missing := self._spec.missing_files():
            raise ModelLoadError(f"{self._spec.folder} lacks {', '.join(missing)}")
        os.environ["HF_HUB_OFFLINE"] = "1"  # what it lacks it would otherwise fetch by itself
        report("torch", 0, 3, "steps")
        import torch

        torch.set_num_threads(self._threads)
        self._torch = torch
        report("aligner", 1, 3, "steps")
        _use_espeak_wheel()
        report("weights", 2, 3, "steps")
        self.device, self.device_reason = torch_device.choose(torch, self._wanted)
        if self.device == "mps":  # its search is not made for it
            self.device, self.device_reason = "cpu", "the aligner is not tried on Metal; running on the CPU"
        self._aligner = self._make()
        self._aligner.phonemizer.break_words_alpha = _words
        self.align(torch.zeros(SAMPLE_RATE // 2).numpy(), "warm up")

    def align(self, samples: Any, text: str) -> Alignment:
        if not any(sign.isalnum() for sign in text):
            raise InputError("text: there is nothing in it that can be spoken")
        if len(samples) < _SHORTEST:
            raise InputError(f"the audio has {len(samples) * 1000 // SAMPLE_RATE} ms: too short to align")
        # A copy: what came over the wire is read-only, which torch warns about.
        wave = self._torch.from_numpy(samples.copy())[None]
        segments = self._aligner.process_sentence(text, wave)["segments"]
        words = _spoken(segments[0]) if segments else []
        if not words:
            raise InputError("the audio is too short for the text, or nothing in the text can be spoken")
        confidences = [phone[4] for word in words for phone in word["phones"]]
        return Alignment(
            words=words, confidence=sum(confidences) / len(confidences), duration_s=len(samples) / SAMPLE_RATE
        )

    def _make(self) -> Any:
        from bournemouth_aligner import BFA

        options = self._spec.options
        try:
            return BFA(
                ckpt_path=str(self._spec.folder),
                phoneme_set=options.get("phoneme_set", "ph66"),
                lang=options.get("language", "en-us"),
                boundary_bonus_weight=options.get("boundary_bonus_weight"),
                device=self.device,
                # What is shorter is filled up to it, for batches; one recording at a time needs none of that.
                duration_max=_PADDED_S,
                warn_level=0,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelLoadError(f"{self._spec.folder}: {str(error).strip().splitlines()[0]}") from error


def _use_espeak_wheel() -> None:
    """phonemizer looks for a library of the system; the profile has it in a wheel."""
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())


def _words(sentence: str) -> list[str]:
    """Words and pauses, in place of the phonemizer's own splitting."""
    found = (part for word in _WORDS.findall(sentence) for part in parts(word.replace("’", "'")))
    return [_PAUSE if each in ".,!?;:" else each for each in found]


def _spoken(segment: dict[str, Any]) -> list[Spoken]:
    """The words that have sounds; what was aligned to a pause of the text is none."""
    found = [phone for phone in segment["phoneme_ts"] if phone["phoneme_label"] != _SILENCE]
    word_of = segment["word_num"]
    words = []
    for number, own in itertools.groupby(found, key=lambda phone: word_of[phone["target_seq_idx"]]):
        phones = [each for phone in own for each in _phones(phone)]
        confidence = sum(each[4] for each in phones) / len(phones)
        words.append(Spoken(word=segment["words"][number], confidence=confidence, phones=phones))
    return words


def _phones(phone: dict[str, Any]) -> Iterable[tuple[str, str, float, float, float]]:
    """ph66 writes a long vowel with a colon; "-" stands for the second part of what eSpeak NG writes as one."""
    label = phone["phoneme_label"].replace(":", "ː")
    ipa = phone["ipa_label"] if phone["ipa_label"] != "-" else label
    names = [name.rstrip("012") for name in from_ipa(label) or from_ipa(ipa)]
    times = phone["start_ms"] / 1000, phone["end_ms"] / 1000, phone["confidence"]
    return [(names[0] if names else ipa, ipa, *times)]
