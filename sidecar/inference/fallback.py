"""Falling back: the next best model answers where the best one cannot be loaded, or cannot tell what is asked for."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sidecar.errors import ModelLoadError, NoTimingsError

Choice = TypeVar("Choice")
T = TypeVar("T")


async def by_best(choose: Callable[[], Choice], use: Callable[[Choice], Awaitable[T]]) -> T:
    """What `use` makes of what `choose` says: a model, mostly. If that cannot be loaded, of what it says then; likewise
    if it tells no times, where `choose` looks at who did not.

    Raises what both raise; these two when the choice stays the same, as it does for a model that was named.
    """
    while True:
        choice = choose()
        try:
            return await use(choice)
        except (ModelLoadError, NoTimingsError):
            if choose() == choice:
                raise
