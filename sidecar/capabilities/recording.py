"""Requests about a recording: the server decodes it, so that every capability gets the same samples."""

from collections.abc import Collection
from typing import Any

from pydantic import PrivateAttr, model_validator

from sidecar.capabilities.base import InferenceRequest

SAMPLE_RATE = 16_000


class RecordingRequest(InferenceRequest):
    """What is asked about a recording. The recording itself is no field: no body can put raw samples in its place."""

    _samples: Any = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _blank_is_absent(cls, fields: Any) -> Any:
        return without_blanks(fields, keep={name for name, each in cls.model_fields.items() if each.is_required()})

    @property
    def samples(self) -> Any:
        """float32 array of shape (n,), mono, 16 kHz, −1..1."""
        return self._samples

    def hear(self, samples: Any) -> None:
        """Called by the route when it has decoded the recording."""
        self._samples = samples


def without_blanks(fields: Any, keep: Collection[str] = ()) -> Any:
    """A form's fields without those that are blank: many programs send what nobody has filled in."""
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in fields.items() if name in keep or not _is_blank(value)}


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def recording_cost(samples: Any) -> int:
    """For the batcher: ten "tokens" a second."""
    return 1 + len(samples) * 10 // SAMPLE_RATE


def as_samples(array: Any) -> Any:
    """In the runner: the recording of an item, float32; PCM16 of a live one is scaled to −1..1."""
    import numpy as np

    samples = array.numpy()
    return samples.astype(np.float32) / np.float32(32768) if samples.dtype == np.int16 else samples
