"""Terms: what every runner is started with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sidecar.catalogue.spec import ModelSpec


@dataclass(frozen=True)
class Terms:
    """What every runner is started with."""

    ready_timeout_s: float
    """Longest silence while it loads."""
    threads: int = 0
    device: str = "auto"
    interpreter: Callable[[ModelSpec, str], Path | None] = lambda spec, device: None
    """Python of the environment that the model needs on that device; None for our own. Raises SidecarError."""
    blames_inputs: bool = False
    """A runner that dies over an input says nothing about the model."""
