"""A child process on the event loop of Windows. Same interface as child_posix."""

import asyncio
from collections.abc import Callable, Mapping, Sequence


async def spawn(
    make_protocol: Callable[[], asyncio.SubprocessProtocol], argv: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Start `argv` with pipes as its stdin, stdout and stderr. Raises OSError if that cannot be done."""
    await asyncio.get_running_loop().subprocess_exec(make_protocol, *argv, env=environment)
