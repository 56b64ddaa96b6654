"""The decoder, seen from the server: a process of its own for FFmpeg, which reads whatever it is sent.

Why the runners' machinery: a file that brings FFmpeg down is to an upload what a bad input is to a model. Restart, the
retry with nothing beside it, the blame, the refusal of an input that crashes again and again, deadline, memory watch,
keep-alive and the end with the server are all there. What differs is that it is no model, so it is in no list and in no
budget (`Pool.internal`), and that the fault is the file's: what a runner answers with 5xx is here a 422.

Files on disk are not sent: the process opens what the server holds open (`process.readable_by_child`). What it answers
comes in pieces of some seconds, collected into one buffer that goes to the model's runner as it is.

Encoding of compressed answers stays in the server's threads: its input are samples of our own making.
"""

from collections.abc import AsyncGenerator
from typing import NamedTuple

from sidecar.capabilities.decode import Decode, Decoded, DecodeItem
from sidecar.capabilities.samples import Audio, Sound
from sidecar.catalogue.spec import BatchLimits, ModelSpec
from sidecar.errors import (
    AudioError,
    OutOfMemoryError,
    PoisonInputError,
    RunnerCrashedError,
    RunnerTimeoutError,
)
from sidecar.inference.batcher import Priority, RunnerKilledError
from sidecar.inference.pool import Pool

SPEC = ModelSpec(
    id="decoder",
    title="FFmpeg",
    capabilities=(Decode.name,),
    runtime="ffmpeg",
    licence="LGPL-2.1-or-later",
    device="cpu",
    # Uploads in memory and an index or two: what takes more is no recording.
    memory_limit_mb=1024,
    # Others decode beside it, each in a thread.
    threads=1,
    batch=BatchLimits(max_items=1, timeout_s=20.0),
)


class _Gathered(NamedTuple):
    """float32 of 16 kHz, and the rate it came from (Hz)."""

    samples: Sound
    sample_rate: int


class Decoder:
    """Starts with its first file, leaves after `SIDECAR_KEEP_ALIVE`."""

    def __init__(self, pool: Pool, spec: ModelSpec = SPEC) -> None:
        self.slot = pool.internal(spec, _gather)

    async def decode(self, item: DecodeItem) -> Audio:
        """Raises AudioError, AudioTooLongError, OverloadedError, ShuttingDownError; cancelling ends the work."""
        self.slot.touch()
        try:
            sound: _Gathered = await self.slot.batcher.submit(Decode.name, item, 1, Priority.INTERACTIVE)
        except RunnerKilledError:
            raise  # by whoever: no fault of the file
        except PoisonInputError:
            raise AudioError("this audio has crashed the decoder again and again, and is not tried any more") from None
        except RunnerCrashedError:
            raise AudioError("this audio crashes the decoder, also when it is tried again; it is damaged") from None
        except RunnerTimeoutError as error:
            raise AudioError(f"this audio cannot be decoded: {error.message}") from None
        except OutOfMemoryError as error:
            raise AudioError(f"this audio cannot be decoded: {error.message}") from None
        finally:
            self.slot.touch()
        return Audio.of(sound.samples, sound.sample_rate)


async def _gather(pieces: AsyncGenerator[Decoded, None]) -> _Gathered:
    samples, sample_rate = Sound(), 0
    async for piece in pieces:
        samples += piece["samples"].data
        sample_rate = sample_rate or piece["sample_rate"]
    return _Gathered(samples, sample_rate)
