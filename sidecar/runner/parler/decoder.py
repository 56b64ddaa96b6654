"""The decoder: a transformer that sees its own past and, by cross attention, the description.

Written as functions over weights. `torch` is passed in: it exists only in the environments that have it.
"""

import math
from typing import Any, NamedTuple

from sidecar.errors import ModelLoadError
from sidecar.runner.parler.checkpoint import Sizes, Weights

_STEM = "decoder.model.decoder"
_BLOCK = 256
_EPSILON = 1e-5  # of torch.nn.LayerNorm


class _Norm(NamedTuple):
    weight: Any
    bias: Any


class _Layer(NamedTuple):
    """Matrices (out, in). `own` makes queries, keys and values at once."""

    own_norm: _Norm
    own: Any
    own_out: Any
    cross_norm: _Norm
    cross_query: Any
    cross_keys: Any
    cross_out: Any
    last_norm: _Norm
    up: Any
    down: Any


class Past:
    """What one utterance has computed so far: keys and values of every layer, which grow by blocks."""

    def __init__(self, cross: list[tuple[Any, Any]], capacity: int) -> None:
        self.cross = cross
        self.length = 0
        self.capacity = capacity
        self.own: list[tuple[Any, Any]] = []

    def extend(self, torch: Any, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """The layer's keys and values with the new ones, (1, heads, length, width of a head)."""
        end = self.length + keys.shape[2]
        if layer == len(self.own):
            self.own.append((self._room(torch, keys, end), self._room(torch, values, end)))
        held = self.own[layer]
        if held[0].shape[2] < end:
            grown = [self._room(torch, tensor, end) for tensor in held]
            for new, old in zip(grown, held, strict=True):
                new[:, :, : self.length] = old[:, :, : self.length]
            held = self.own[layer] = (grown[0], grown[1])
        for room, new in zip(held, (keys, values), strict=True):
            room[:, :, self.length : end] = new
        return held[0][:, :, :end], held[1][:, :, :end]

    def _room(self, torch: Any, like: Any, needed: int) -> Any:
        length = min(self.capacity, -(-needed // _BLOCK) * _BLOCK)
        return torch.empty((1, like.shape[1], length, like.shape[3]), dtype=like.dtype, device=like.device)


class Decoder:
    """Takes its weights from `weights`; `to` moves and converts them."""

    def __init__(self, torch: Any, sizes: Sizes, weights: Weights) -> None:
        self._torch = torch
        self._sizes = sizes
        count, width = sizes.codebooks, sizes.width
        names = [f"{_STEM}.embed_tokens.{number}.weight" for number in range(count)]
        self._codes = torch.cat([weights.take(name, sizes.vocabulary + 1, width) for name in names])
        self._offsets = torch.arange(count) * (sizes.vocabulary + 1)
        self._positions = None if sizes.rotary else _positions(torch, weights, f"{_STEM}.embed_positions", sizes)
        self._layers = [self._layer(weights, f"{_STEM}.layers.{number}") for number in range(sizes.layers)]
        self._norm = self._take_norm(weights, f"{_STEM}.layer_norm")
        if sizes.joined_heads:
            self._heads = weights.take("decoder.lm_heads.weight", count * sizes.vocabulary, width)
        else:
            heads = [f"decoder.lm_heads.{number}.weight" for number in range(count)]
            self._heads = torch.cat([weights.take(name, sizes.vocabulary, width) for name in heads])

    def to(self, device: str, dtype: Any) -> None:
        self._offsets = self._offsets.to(device)
        self._codes, self._heads = self._codes.to(device, dtype), self._heads.to(device, dtype)
        if self._positions is not None:
            self._positions = self._positions.to(device, dtype)
        self._norm = _moved(self._norm, device, dtype)
        # One after the other: the converted ones need not all lie beside the others.
        for number, layer in enumerate(self._layers):
            self._layers[number] = _moved(layer, device, dtype)

    def begin(self, memory: Any, prompt: Any | None, start: int, longest: int) -> tuple[Past, Any]:
        """`memory` (1, tokens, width) is what cross attention sees; `prompt`, alike, comes before the first column.

        Returns the past and the logits (codebooks, vocabulary) of the second column.
        """
        cross = [self._cross(layer, memory) for layer in self._layers]
        column = self._embedded(self._torch.full_like(self._offsets, start))
        inputs = column if prompt is None else self._torch.cat([prompt, column], dim=1)
        past = Past(cross, inputs.shape[1] + longest)
        return past, self._run(past, inputs)

    def step(self, past: Past, column: list[int]) -> Any:
        """The logits (codebooks, vocabulary), float32 on the CPU, of what follows a column of codes."""
        codes = self._torch.tensor(column, device=self._offsets.device)
        return self._run(past, self._embedded(codes))

    def _embedded(self, codes: Any) -> Any:
        return self._codes[codes + self._offsets].sum(dim=0).view(1, 1, -1)

    def _run(self, past: Past, inputs: Any) -> Any:
        functional = self._torch.nn.functional
        start, end = past.length, past.length + inputs.shape[1]
        turn = self._turned(start, end, inputs) if self._positions is None else None
        state = inputs if self._positions is None else inputs + self._positions[start:end]
        for number, layer in enumerate(self._layers):
            state = state + self._look_back(past, number, layer, self._normed(state, layer.own_norm), turn)
            state = state + self._look_across(past.cross[number], layer, self._normed(state, layer.cross_norm), turn)
            inner = self._activated(functional.linear(self._normed(state, layer.last_norm), layer.up))
            state = state + functional.linear(inner, layer.down)
        past.length = end
        last = self._normed(state[:, -1], self._norm)
        return functional.linear(last, self._heads).view(self._sizes.codebooks, -1).float().cpu()

    def _look_back(self, past: Past, number: int, layer: _Layer, state: Any, turn: Any) -> Any:
        sizes, size = self._sizes, self._sizes.width // self._sizes.heads
        rows = [sizes.heads * size, sizes.key_heads * size, sizes.key_heads * size]
        query, keys, values = self._torch.nn.functional.linear(state, layer.own).split(rows, dim=-1)
        query, keys = self._split(query, sizes.heads, turn), self._split(keys, sizes.key_heads, turn)
        keys, values = past.extend(self._torch, number, keys, self._split(values, sizes.key_heads, None))
        return self._attended(query, keys, values, layer.own_out, causal=state.shape[1] > 1)

    def _look_across(self, cross: tuple[Any, Any], layer: _Layer, state: Any, turn: Any) -> Any:
        # The queries are turned here, too, the keys are not: so the models were trained.
        query = self._torch.nn.functional.linear(state, layer.cross_query)
        return self._attended(self._split(query, self._sizes.heads, turn), *cross, layer.cross_out, causal=False)

    def _attended(self, query: Any, keys: Any, values: Any, out: Any, *, causal: bool) -> Any:
        functional = self._torch.nn.functional
        if shared := query.shape[1] // keys.shape[1] - 1:
            keys, values = (tensor.repeat_interleave(shared + 1, dim=1) for tensor in (keys, values))
        found = functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return functional.linear(found.transpose(1, 2).reshape(1, query.shape[2], -1), out)

    def _split(self, tensor: Any, heads: int, turn: Any) -> Any:
        """(1, length, heads * size) → (1, heads, length, size), turned by its place where the model wants that."""
        parts = tensor.view(1, tensor.shape[1], heads, -1).transpose(1, 2)
        if turn is None:
            return parts
        cosine, sine = turn
        low, high = parts.chunk(2, dim=-1)
        return parts * cosine + self._torch.cat((-high, low), dim=-1) * sine

    def _turned(self, start: int, end: int, like: Any) -> tuple[Any, Any]:
        torch, size = self._torch, self._sizes.width // self._sizes.heads
        speeds = 1.0 / self._sizes.theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(start, end, dtype=torch.float32), speeds).repeat(1, 2)
        return angles.cos().to(like.device, like.dtype), angles.sin().to(like.device, like.dtype)

    def _normed(self, state: Any, norm: _Norm) -> Any:
        return self._torch.nn.functional.layer_norm(state, (self._sizes.width,), norm.weight, norm.bias, _EPSILON)

    def _activated(self, state: Any) -> Any:
        functional, name = self._torch.nn.functional, self._sizes.activation
        if name == "gelu_new":
            return functional.gelu(state, approximate="tanh")
        return getattr(functional, name)(state)

    def _cross(self, layer: _Layer, memory: Any) -> tuple[Any, Any]:
        keys, values = self._torch.nn.functional.linear(memory, layer.cross_keys).chunk(2, dim=-1)
        heads = self._sizes.cross_key_heads
        return self._split(keys, heads, None), self._split(values, heads, None)

    def _layer(self, weights: Weights, stem: str) -> _Layer:
        sizes, size = self._sizes, self._sizes.width // self._sizes.heads

        def take(*names: str, rows: int = sizes.width) -> Any:
            taken = [weights.take(f"{stem}.{name}.weight") for name in names]
            whole = self._torch.cat(taken) if len(taken) > 1 else taken[0]
            if whole.shape != (rows, sizes.width):
                told = f"{tuple(whole.shape)}, not {(rows, sizes.width)} as config.json says"
                raise ModelLoadError(f"{weights.folder}: {stem}, {', '.join(names)}: {told}")
            return whole

        own, across = "self_attn", "encoder_attn"
        down = weights.take(f"{stem}.fc2.weight")
        return _Layer(
            self._take_norm(weights, f"{stem}.self_attn_layer_norm"),
            take(*(f"{own}.{name}_proj" for name in "qkv"), rows=sizes.width + 2 * sizes.key_heads * size),
            take(f"{own}.out_proj"),
            self._take_norm(weights, f"{stem}.encoder_attn_layer_norm"),
            take(f"{across}.q_proj"),
            take(f"{across}.k_proj", f"{across}.v_proj", rows=2 * sizes.cross_key_heads * size),
            take(f"{across}.out_proj"),
            self._take_norm(weights, f"{stem}.final_layer_norm"),
            take("fc1", rows=down.shape[1]),
            down,
        )

    def _take_norm(self, weights: Weights, stem: str) -> _Norm:
        width = self._sizes.width
        return _Norm(weights.take(f"{stem}.weight", width), weights.take(f"{stem}.bias", width))


def _positions(torch: Any, weights: Weights, stem: str, sizes: Sizes) -> Any:
    """(positions, width): as stored, else computed: cosines, then sines, of angles that fall by powers of 10,000."""
    if f"{stem}.weights" in weights:
        return weights.take(f"{stem}.weights", sizes.positions, sizes.width)
    half = sizes.width // 2
    speeds = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
    angles = torch.outer(torch.arange(sizes.positions, dtype=torch.float32), speeds)
    return torch.nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, sizes.width % 2))


def positions(torch: Any, weights: Weights, sizes: Sizes) -> Any:
    """Those of a text that cross attention sees, (positions, width)."""
    return _positions(torch, weights, "embed_positions", sizes)


def _moved(tensors: Any, device: str, dtype: Any) -> Any:
    return type(tensors)(
        *(_moved(each, device, dtype) if isinstance(each, _Norm) else each.to(device, dtype) for each in tensors)
    )
