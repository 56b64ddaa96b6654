"""Falling back: the next best model answers where the best one cannot be loaded."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sidecar.errors import ModelLoadError

Choice = TypeVar("Choice")
T = TypeVar("T")


async def by_best(choose: Callable[[], Choice], use: Callable[[Choice], Awaitable[T]]) -> T:
    """What `use` makes of what `choose` says: a model, mostly. If that cannot be loaded, of what it says then.

    Raises what both raise; ModelLoadError when the choice stays the same, as it does for a model that was named.
    """
    while True:
        choice = choose()
        try:
            return await use(choice)
        except ModelLoadError:
            if choose() == choice:
                raise
