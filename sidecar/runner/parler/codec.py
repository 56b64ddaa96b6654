"""The Descript Audio Codec's second half: codes to sound (Kumar et al., arXiv 2306.06546). Its sizes are the weights'.

Checkpoints of 2024 name its parts as descript's own package does, with weight norm unfolded; later ones as transformers
does.
"""

import re
from typing import Any, NamedTuple

from sidecar.errors import ModelLoadError
from sidecar.runner.parler.checkpoint import Weights

_OURS = "audio_encoder.model."
_THEIRS = "audio_encoder."
# Of the pairs (gain, direction) that weight norm leaves, in the order of torch's versions.
_NORMED = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))
_DILATIONS = (1, 3, 9)
_EPSILON = 1e-9


class _Conv(NamedTuple):
    weight: Any
    bias: Any


class _Unit(NamedTuple):
    first: Any
    wide: _Conv
    second: Any
    narrow: _Conv


class _Block(NamedTuple):
    alpha: Any
    up: _Conv
    stride: int
    units: list[_Unit]


class Codec:
    """`hop` samples come of each frame of codes; `reach` frames on either side have a part in them."""

    def __init__(self, torch: Any, weights: Weights, codebooks: int) -> None:
        self._torch = torch
        described = any(name.startswith(_OURS) for name in weights.names())
        stem = _OURS if described else _THEIRS
        folded = {}
        for name, tensor in _folded(torch, weights.take_all(stem)).items():
            folded[_transformers_name(name) if described else name] = tensor
        parts = Weights(folded, weights.folder)
        quantizers = [f"quantizer.quantizers.{number}" for number in range(codebooks)]
        self._books = [parts.take(f"{name}.codebook.weight") for name in quantizers]
        self._outs = [self._conv(parts, f"{name}.out_proj") for name in quantizers]
        self._first = self._conv(parts, "decoder.conv1")
        count = len({name.split(".")[2] for name in parts.names() if name.startswith("decoder.block.")})
        if not count:
            raise ModelLoadError(f"{weights.folder}: the weights lack the codec's decoder")
        self._blocks = [self._block(parts, f"decoder.block.{number}") for number in range(count)]
        self._alpha = parts.take("decoder.snake1.alpha")
        self._last = self._conv(parts, "decoder.conv2")
        self.hop, self.reach = self._measured()
        self.even = all(block.stride % 2 == 0 for block in self._blocks)
        """Whether a frame is exactly `hop` samples, so that sound can be made in parts."""

    def to(self, device: str, dtype: Any) -> None:
        self._books = [book.to(device, dtype) for book in self._books]
        self._outs = [_moved(conv, device, dtype) for conv in self._outs]
        self._first, self._last = _moved(self._first, device, dtype), _moved(self._last, device, dtype)
        self._alpha = self._alpha.to(device, dtype)
        self._blocks = [
            block._replace(
                alpha=block.alpha.to(device, dtype),
                up=_moved(block.up, device, dtype),
                units=[
                    _Unit(
                        unit.first.to(device, dtype),
                        _moved(unit.wide, device, dtype),
                        unit.second.to(device, dtype),
                        _moved(unit.narrow, device, dtype),
                    )
                    for unit in block.units
                ],
            )
            for block in self._blocks
        ]

    def sound(self, frames: list[list[int]]) -> Any:
        """Frames of one code a codebook → float32 (samples,) on the CPU, -1 to 1."""
        functional, device = self._torch.nn.functional, self._alpha.device
        codes = self._torch.tensor(frames, device=device).T
        state = sum(
            functional.conv1d(functional.embedding(row, book).T[None], *out)
            for row, book, out in zip(codes, self._books, self._outs, strict=True)
        )
        state = functional.conv1d(state, *self._first, padding=3)
        for block in self._blocks:
            state = self._grown(block, state)
        state = functional.conv1d(self._snake(state, self._alpha), *self._last, padding=3)
        return self._torch.tanh(state).view(-1).float().cpu()

    def _grown(self, block: _Block, state: Any) -> Any:
        functional = self._torch.nn.functional
        padding = -(-block.stride // 2)
        state = self._snake(state, block.alpha)
        state = functional.conv_transpose1d(state, *block.up, stride=block.stride, padding=padding)
        for unit, dilation in zip(block.units, _DILATIONS, strict=True):
            inner = functional.conv1d(
                self._snake(state, unit.first),
                unit.wide.weight,
                unit.wide.bias,
                padding=3 * dilation,
                dilation=dilation,
            )
            state = state + functional.conv1d(self._snake(inner, unit.second), unit.narrow.weight, unit.narrow.bias)
        return state

    def _snake(self, state: Any, alpha: Any) -> Any:
        # Few and large tensors: in place, as each is as long as the sound times its channels.
        wave = (alpha * state).sin_().square_()
        return wave.div_(alpha + _EPSILON).add_(state)

    def _measured(self) -> tuple[int, int]:
        """Samples of a frame; and frames to each side that its convolutions reach."""
        hop, reach = 1, 3
        for block in reversed(self._blocks):
            hop *= block.stride
            reach = -(-(reach + 3 * sum(_DILATIONS)) // block.stride) + 1
        return hop, reach + 3

    def _block(self, parts: Weights, stem: str) -> _Block:
        up = self._conv(parts, f"{stem}.conv_t1")
        units = [
            _Unit(
                parts.take(f"{stem}.res_unit{number}.snake1.alpha"),
                self._conv(parts, f"{stem}.res_unit{number}.conv1"),
                parts.take(f"{stem}.res_unit{number}.snake2.alpha"),
                self._conv(parts, f"{stem}.res_unit{number}.conv2"),
            )
            for number in (1, 2, 3)
        ]
        return _Block(parts.take(f"{stem}.snake1.alpha"), up, up.weight.shape[2] // 2, units)

    def _conv(self, parts: Weights, stem: str) -> _Conv:
        return _Conv(parts.take(f"{stem}.weight"), parts.take(f"{stem}.bias"))


def is_needed(name: str) -> bool:
    """Whether speaking needs a weight: the half of the codec that listens is left in the file."""
    if not name.startswith(_THEIRS):
        return True
    part = name.removeprefix(_OURS).removeprefix(_THEIRS)
    return part.startswith(("decoder.", "quantizer.")) and ".in_proj." not in part


def _folded(torch: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Weight norm (Salimans and Kingma, arXiv 1602.07868) multiplied out: direction of length one, times gain."""
    for gain, direction in _NORMED:
        for name in [name for name in tensors if name.endswith(direction)]:
            stem = name.removesuffix(direction)
            along, scale = tensors.pop(name).float(), tensors.pop(stem + gain).float()
            length = torch.linalg.vector_norm(along, dim=tuple(range(1, along.ndim)), keepdim=True)
            tensors[f"{stem}.weight"] = along * (scale / length)
    return tensors


def _transformers_name(name: str) -> str:
    """ "decoder.model.2.block.3.block.1.bias" is "decoder.block.1.res_unit2.conv1.bias" to transformers."""
    if (found := re.fullmatch(r"decoder\.model\.(\d+)\.block\.(\d)\.block\.(\d)\.(.+)", name)) is not None:
        part = ("snake1", "conv1", "snake2", "conv2")[int(found[3])]
        return f"decoder.block.{int(found[1]) - 1}.res_unit{int(found[2]) - 1}.{part}.{found[4]}"
    if (found := re.fullmatch(r"decoder\.model\.(\d+)\.block\.([01])\.(.+)", name)) is not None:
        return f"decoder.block.{int(found[1]) - 1}.{('snake1', 'conv_t1')[int(found[2])]}.{found[3]}"
    if (found := re.fullmatch(r"decoder\.model\.(\d+)\.(.+)", name)) is not None:
        # Outside the blocks there are three: a convolution, and at the end a snake and the last convolution.
        part = "conv1" if found[1] == "0" else "snake1" if found[2] == "alpha" else "conv2"
        return f"decoder.{part}.{found[2]}"
    return name


def _moved(conv: _Conv, device: str, dtype: Any) -> _Conv:
    return _Conv(conv.weight.to(device, dtype), conv.bias.to(device, dtype))
