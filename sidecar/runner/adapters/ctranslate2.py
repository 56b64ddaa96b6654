"""Whisper in CTranslate2's format, by faster-whisper, from a folder on this computer."""

import sys
from collections.abc import Iterator
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel

from sidecar.capabilities.asr import Head, Segment, TranscribeOptions, Word
from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.adapters import BaseAdapter, Report

_SAMPLE_RATE = 16_000
# A batch of windows needs a GPU to be worth the wait for its first segment.
_GPU_BATCH = 8
# The fastest type that the device has instructions for: int8 on most processors.
_COMPUTE_TYPE = "auto"


class WhisperAdapter(BaseAdapter):
    """`options.compute_type` is CTranslate2's (default auto); `options.batch_size` is the
    number of 30 s windows computed together, 1 for one after the other.
    """

    def load(self, report: Report) -> None:
        folder = self._spec.folder
        # Without its own tokenizer, the library would look for one on the network.
        if lacking := [
            name for name in ("model.bin", "config.json", "tokenizer.json") if not (folder / name).is_file()
        ]:
            raise ModelLoadError(f"model {self._spec.id!r}: {folder} lacks {', '.join(lacking)}")
        report("weights", 0, 2, "steps")
        self._model = self._open()
        report("weights", 2, 2, "steps")

    def _open(self) -> WhisperModel:
        refusal = ""
        if self._wanted in ("auto", "cuda"):
            try:
                if ctranslate2.get_cuda_device_count():
                    model = self._warm("cuda")
                    self.device, self.device_reason = "cuda:0", "CTranslate2 found a GPU that works"
                    return model
                refusal = "CTranslate2 found no CUDA device"
            except Exception as error:  # a library of CUDA is missing or too old, or the GPU's memory is full
                refusal = f"CUDA could not be used: {str(error).splitlines()[0][:300]}"
                print(refusal, file=sys.stderr, flush=True)
        elif self._wanted == "mps":
            refusal = "CTranslate2 has no Metal support"
        self.device_reason = f"{refusal}; running on the CPU" if refusal else "the CPU was asked for"
        return self._warm("cpu")

    def _warm(self, device: str) -> WhisperModel:
        model = WhisperModel(
            str(self._spec.folder),
            device=device,
            compute_type=self._spec.options.get("compute_type", _COMPUTE_TYPE),
            cpu_threads=self._threads,
            local_files_only=True,
        )
        # What a GPU lacks shows only when it computes.
        model.encode(np.zeros((model.feature_extractor.mel_filters.shape[0], 3000), np.float32))
        self._batch = int(self._spec.options.get("batch_size", _GPU_BATCH if device == "cuda" else 1))
        return model

    def transcribe(self, samples: Any, options: TranscribeOptions) -> Iterator[Head | Segment]:
        """See `Transcriber`."""
        given: dict[str, Any] = {
            "language": self._language(options["language"]),
            "task": options["task"],
            "beam_size": options["beam_size"],
            "word_timestamps": options["word_timestamps"],
            "vad_filter": options["vad_filter"],
            "initial_prompt": options["initial_prompt"],
            "hotwords": options["hotwords"],
        }
        if options["temperature"]:
            given["temperature"] = options["temperature"]
        # Batches are of stretches of speech, so there must be a voice activity filter to cut them.
        batched = self._batch > 1 and options["vad_filter"] and len(samples) > 30 * _SAMPLE_RATE
        pipeline: Any = self._model
        if batched:
            pipeline = BatchedInferencePipeline(self._model)
            given |= {"batch_size": self._batch, "without_timestamps": False}
        segments, info = pipeline.transcribe(samples, **given)
        yield {
            "language": info.language,
            "language_probability": float(info.language_probability),
            "duration_s": float(info.duration),
        }
        for number, segment in enumerate(segments):
            yield _as_segment(number, segment, float(info.duration))

    def _language(self, language: str | None) -> str | None:
        if language is not None and language not in self._model.supported_languages:
            known = "only English" if not self._model.model.is_multilingual else "not this language"
            raise InputError(f"language: model {self._spec.id!r} knows {known} ({language!r} was asked for)")
        return language


def _as_segment(number: int, segment: Any, duration_s: float) -> Segment:
    start, end = _times(segment, duration_s)
    found: Segment = {
        "id": number,
        "start": start,
        "end": end,
        "text": segment.text,
        "avg_logprob": float(segment.avg_logprob),
        "no_speech_prob": float(segment.no_speech_prob),
        "compression_ratio": float(segment.compression_ratio),
        "temperature": float(segment.temperature or 0.0),
        "seek": int(segment.seek),
        "tokens": [int(token) for token in segment.tokens],
    }
    if segment.words is not None:
        found["words"] = [_as_word(word, duration_s) for word in segment.words]
    return found


def _as_word(word: Any, duration_s: float) -> Word:
    start, end = _times(word, duration_s)
    return {"word": word.word, "start": start, "end": end, "probability": float(word.probability)}


def _times(spoken: Any, duration_s: float) -> tuple[float, float]:
    """Whisper hears windows of 30 s, filled up with silence, and may put words behind the recording's end."""
    start = min(max(0.0, float(spoken.start)), duration_s)
    return round(start, 3), round(min(max(start, float(spoken.end)), duration_s), 3)
