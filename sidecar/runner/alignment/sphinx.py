"""A CMU Sphinx acoustic model of the "ptm" kind, as it lies in the pocketsphinx wheel: its phones without context.

One codebook of Gaussians per phone and stream, three states per phone that weigh them. Triphones are not read: on
speech with known times they placed boundaries no better, and scores of all phones are needed for the confidence anyway.
File formats are those that pocketsphinx 5 reads.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import ModelLoadError
from sidecar.runner.alignment.features import STREAMS, Floats

STATES = 3
SILENCE = "SIL"

_BYTE_ORDER = 0x11223344
_VARIANCE_FLOOR = 1e-4
_WEIGHT_UNIT = 1024 * np.log(1.0001)  # mixture weights are stored as −log in this unit
_BLOCK_FRAMES = 500
_SMALLEST = 1e-30


class SphinxModel:
    """Scores every state of every phone. Immutable once made, and so safe for several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelLoadError if `folder` holds no such model."""
        try:
            self.phones = _phones(folder / "mdef")
            means = _gaussians(folder / "means")
            variances = _gaussians(folder / "variances")
            weights = _weights(folder / "sendump", len(self.phones) * STATES)
            transitions = _transitions(folder / "transition_matrices")
        except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{folder} holds no acoustic model that can be read: {error}") from None
        if not len(means) == len(variances) == len(weights) == STREAMS or len(means[0]) != len(self.phones):
            raise ModelLoadError(f"{folder} holds an acoustic model of another kind than three-stream ptm")
        self.index = {phone: number for number, phone in enumerate(self.phones)}
        self._densities = [_as_product(*each) for each in zip(means, variances, strict=True)]
        self._weights = weights
        stay = transitions[:, range(STATES), range(STATES)]
        self.log_stay: Floats = np.log(stay).astype(np.float32)
        self.log_leave: Floats = np.log1p(-stay).astype(np.float32)

    def scores(self, streams: tuple[Floats, ...]) -> Floats:
        """Log likelihoods of shape (frames, phones × 3) for the arrays that `features` gives."""
        frames = len(streams[0])
        scores = np.zeros((frames, len(self.phones) * STATES), np.float32)
        for at in range(0, frames, _BLOCK_FRAMES):
            block = slice(at, at + _BLOCK_FRAMES)
            for stream, (factors, offsets), weights in zip(streams, self._densities, self._weights, strict=True):
                scores[block] += _mixtures(stream[block], factors, offsets, weights)
        return scores


def _as_product(means: Floats, variances: Floats) -> tuple[Floats, Floats]:
    """Diagonal Gaussians as one matrix product over [x², x]: factors (2 × 13, phones × densities), offsets."""
    precision = 1 / np.maximum(variances.astype(np.float64), _VARIANCE_FLOOR)
    factors = np.concatenate([-0.5 * precision, means * precision], axis=-1)
    offsets = 0.5 * (np.log(precision / (2 * np.pi)) - means.astype(np.float64) ** 2 * precision).sum(axis=-1)
    return factors.reshape(-1, factors.shape[-1]).T.astype(np.float32), offsets.reshape(-1).astype(np.float32)


def _mixtures(stream: Floats, factors: Floats, offsets: Floats, weights: Floats) -> Floats:
    """`weights` is (phones, densities, 3)."""
    phones, densities, _ = weights.shape
    logs = (np.concatenate([stream * stream, stream], axis=1) @ factors + offsets).reshape(-1, phones, densities)
    peaks = logs.max(axis=2)
    shares = np.exp(logs - peaks[:, :, None]).transpose(1, 0, 2) @ weights
    mixed = np.log(np.maximum(shares, _SMALLEST)).transpose(1, 0, 2) + peaks[:, :, None]
    return np.asarray(mixed.reshape(len(stream), -1), np.float32)


def _phones(path: Path) -> list[str]:
    """Names of the context-free phones, from a binary model definition."""
    data = path.read_bytes()
    if data[:4] != b"BMDF":
        raise ValueError(f"{path.name} is no little-endian binary model definition")
    (description,) = struct.unpack_from("<i", data, 8)
    count, _, states = struct.unpack_from("<3i", data, 12 + description)
    if states != STATES or not 0 < count < 1000:
        raise ValueError(f"{path.name} defines {count} phones of {states} states")
    return [name.decode("ascii") for name in data[12 + description + 40 :].split(b"\0", count)[:count]]


def _body(path: Path) -> tuple[bytes, int]:
    """A file with the text header of the trainer, and where its numbers begin."""
    data = path.read_bytes()
    start = data.index(b"endhdr\n") + 7
    if struct.unpack_from("<I", data, start) != (_BYTE_ORDER,):
        raise ValueError(f"{path.name} is not little-endian")
    return data, start + 4


def _gaussians(path: Path) -> list[Floats]:
    """Per stream: (phones, densities, dimensions)."""
    data, at = _body(path)
    phones, streams, densities = struct.unpack_from("<3i", data, at)
    lengths = struct.unpack_from(f"<{streams}i", data, at + 12)
    values = np.frombuffer(data, "<f4", phones * densities * sum(lengths), at + 16 + 4 * streams).reshape(phones, -1)
    parts = np.split(values, np.cumsum([densities * length for length in lengths])[:-1], axis=1)
    return [part.reshape(phones, densities, length) for part, length in zip(parts, lengths, strict=True)]


def _weights(path: Path, states: int) -> list[Floats]:
    """Per stream: (phones, densities, 3); each state's weights add up to one."""
    data = path.read_bytes()
    at = 0
    while True:
        (length,) = struct.unpack_from("<i", data, at)
        at += 4 + length
        if length == 0:
            break
        if data[at - length : at].startswith(b"cluster_count") and data[at - length : at - 1] != b"cluster_count 0":
            raise ValueError(f"{path.name} holds clustered weights")
    densities, senones = struct.unpack_from("<2i", data, at)
    stored = np.frombuffer(data, np.uint8, STREAMS * densities * senones, at + 8).reshape(STREAMS, densities, senones)
    shares = np.exp(stored[:, :, :states] * -_WEIGHT_UNIT)
    shares /= shares.sum(axis=1, keepdims=True)
    by_phone = shares.reshape(STREAMS, densities, -1, STATES).transpose(0, 2, 1, 3).astype(np.float32)
    return list(np.ascontiguousarray(by_phone))


def _transitions(path: Path) -> NDArray[np.float64]:
    """(phones, 3, 4): from state to state; the last column leaves the phone."""
    data, at = _body(path)
    count, rows, columns, total = struct.unpack_from("<4i", data, at)
    matrices = np.frombuffer(data, "<f4", total, at + 16).reshape(count, rows, columns).astype(np.float64)
    return np.asarray(matrices / matrices.sum(axis=2, keepdims=True))
