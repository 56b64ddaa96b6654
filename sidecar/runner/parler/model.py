"""The whole of it: a description and a text to sound, in parts as it is made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sidecar.errors import InputError, ModelLoadError
from sidecar.runner.parler.checkpoint import Config, Progress, Weights
from sidecar.runner.parler.codec import Codec, is_needed
from sidecar.runner.parler.codes import Utterance, draw
from sidecar.runner.parler.decoder import Decoder, positions

LONGEST_DESCRIPTION = 512
"""Tokens that the text encoder was trained on."""
_FIRST_PART_S = 0.3
_LONGEST_PART_S = 1.0


class Parler:
    """`torch` and `transformers` are passed in. Everything is float32 until `to` says otherwise."""

    def __init__(
        self, torch: Any, transformers: Any, folder: Path, config: Config, progress: Progress = lambda *_: None
    ) -> None:
        self._torch = torch
        self._config = config
        sizes = config.sizes
        if config.drawing.longest < 2 * sizes.codebooks:
            raise ModelLoadError(f"{folder}: a max_length of {config.drawing.longest} leaves no room for sound")
        weights = Weights.of(folder, is_needed, progress)
        self._encoder = _text_encoder(torch, transformers, config.text_encoder, weights)
        self._prompts = weights.take("embed_prompts.weight", config.prompt_vocabulary, sizes.width)
        self._places = positions(torch, weights, sizes) if sizes.prompt_in_cross else None
        self._projection = None
        if sizes.projected:
            wide = (sizes.width, int(config.text_encoder["d_model"]))
            self._projection = weights.take("enc_to_dec_proj.weight", *wide), weights.take("enc_to_dec_proj.bias")
        self._decoder = Decoder(torch, sizes, weights)
        self._codec = Codec(torch, weights, sizes.codebooks)
        self.sample_rate = config.sample_rate
        self.to("cpu")

    def to(self, device: str) -> None:
        """Half the bits where a card computes with bfloat16. The codec keeps them all: they would be heard as noise.

        float16 is nowhere used: T5's numbers go beyond it.
        """
        torch = self._torch
        half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if half else torch.float32
        self._encoder.to(device, dtype)
        self._prompts = self._prompts.to(device, dtype)
        if self._places is not None:
            self._places = self._places.to(device, dtype)
        if self._projection is not None:
            self._projection = tuple(tensor.to(device, dtype) for tensor in self._projection)
        self._decoder.to(device, dtype)
        # Metal has no convolution for sound of this length (more than 65,536 values in a row).
        self._codec.to("cpu" if device == "mps" else device, torch.float32)

    def read(self, description: list[int]) -> Any:
        """What the decoder is to know of a voice, (1, tokens, width). Raises InputError."""
        if len(description) > LONGEST_DESCRIPTION:
            raise InputError(
                f"the description has {len(description)} tokens; at most {LONGEST_DESCRIPTION} are read: shorten it"
            )
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([description], device=self._prompts.device)
            memory = self._encoder(input_ids=ids).last_hidden_state
            return memory if self._projection is None else torch.nn.functional.linear(memory, *self._projection)

    def codes(self, memory: Any, text: list[int], seed: int) -> Iterator[list[list[int]]]:
        """The frames that each column completes, often none: after each the caller may stop. Raises InputError."""
        torch, drawing, count = self._torch, self._config.drawing, self._config.sizes.codebooks
        memory, prompt = self._prepared(memory, text)
        source = torch.Generator().manual_seed(seed)
        utterance = Utterance(drawing, count)
        with torch.inference_mode():
            past, logits = self._decoder.begin(memory, prompt, drawing.start, drawing.longest)
        while True:
            with torch.inference_mode():
                column = utterance.add(draw(torch, logits, drawing, utterance.endless(), source))
            frames = list(utterance.frames(self._config.codes))
            yield frames
            if utterance.over:
                return
            with torch.inference_mode():
                logits = self._decoder.step(past, column)

    def speech(self, memory: Any, text: list[int], seed: int) -> Iterator[Any | None]:
        """float32 sound of shape (samples,) in parts of up to a second; None in between, after each column of codes."""
        frames: list[list[int]] = []
        given, part_s = 0, _FIRST_PART_S
        reach, rate = self._codec.reach, self._config.sample_rate / self._codec.hop
        for new in self.codes(memory, text, seed):
            frames += new
            # A frame is sound only when those are known that its convolutions reach.
            if self._codec.even and len(frames) - reach - given >= part_s * rate:
                yield self._sound(frames, given, len(frames) - reach)
                given, part_s = len(frames) - reach, min(_LONGEST_PART_S, 1.5 * part_s)
            else:
                yield None
        if len(frames) > given:
            yield self._sound(frames, given, len(frames))

    def _sound(self, frames: list[list[int]], start: int, end: int) -> Any:
        """That of frames `start` to `end`, computed with as many around them as have a part in it."""
        first = max(0, start - self._codec.reach)
        with self._torch.inference_mode():
            sound = self._codec.sound(frames[first : end + self._codec.reach]).numpy()
        if start == 0 and end == len(frames):
            return sound
        return sound[(start - first) * self._codec.hop : (end - first) * self._codec.hop]

    def _prepared(self, memory: Any, text: list[int]) -> tuple[Any, Any | None]:
        """Memory and prompt as the decoder takes them. Raises InputError for a text that it has no room for."""
        torch, sizes = self._torch, self._config.sizes
        room = sizes.positions - (0 if sizes.prompt_in_cross else self._config.drawing.longest)
        if len(text) > room:
            raise InputError(f"the sentence has {len(text)} tokens; this model has room for {max(0, room)}: shorten it")
        with torch.inference_mode():
            prompt = torch.nn.functional.embedding(torch.tensor([text], device=self._prompts.device), self._prompts)
            if self._places is None:
                return memory, prompt
            return torch.cat([memory, prompt + self._places[: len(text)]], dim=1), None


def _text_encoder(torch: Any, transformers: Any, told: dict[str, Any], weights: Weights) -> Any:
    """T5's encoder, with the checkpoint's weights for its own. Raises ModelLoadError."""
    config = transformers.T5Config(**{name: value for name, value in told.items() if name != "model_type"})
    with torch.device("meta"):
        encoder = transformers.T5EncoderModel(config)
    found = weights.take_all("text_encoder.")
    # One and the same, under either name.
    shared = found.pop("shared.weight", None)
    stem = "encoder.embed_tokens.weight"
    table = found.pop(stem, None) if shared is None else shared
    found.pop(stem, None)
    if table is None:
        raise ModelLoadError(f"{weights.folder}: the weights lack text_encoder.shared.weight")
    encoder.to_empty(device="cpu")
    try:
        absent, strange = encoder.load_state_dict({**found, "shared.weight": table, stem: table}, strict=False)
    except RuntimeError as error:
        raise ModelLoadError(f"{weights.folder}: text_encoder: {str(error).strip().splitlines()[-1].strip()}") from None
    if absent or strange:
        what = f"lack text_encoder.{absent[0]}" if absent else f"have text_encoder.{strange[0]}, which T5 has not"
        raise ModelLoadError(f"{weights.folder}: the weights {what}")
    encoder.tie_weights()
    return encoder.eval().requires_grad_(False)
