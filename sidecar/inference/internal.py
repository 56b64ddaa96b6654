"""Processes of the sidecar's own, kept and watched as models' runners are, that are no models."""

from collections.abc import Callable
from dataclasses import replace

from sidecar.catalogue.spec import ModelSpec
from sidecar.inference.slot import Gather, Slot
from sidecar.inference.terms import Terms
from sidecar.settings import Settings


def internal_slot(
    spec: ModelSpec, gather: Gather, settings: Settings, terms: Terms, log: Callable[[str], None]
) -> Slot:
    """One that asks nobody for room and announces nothing: nothing is evicted for it, and it is not for anything.

    What it crashes on is its input's fault, so it starts again at once.
    """
    terms = replace(terms, blames_inputs=True)
    return Slot(
        spec, settings, terms, _at_once, lambda event, data: None, lambda line: log(f"[{spec.id}] {line}"), gather
    )


async def _at_once(slot: Slot) -> None:
    """There is room."""
