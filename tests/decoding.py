"""A real decoder process for tests without a server: an event loop in a thread, with a pool that keeps it."""

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from sidecar.capabilities.samples import Audio
from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.spec import ModelSpec
from sidecar.inference.pool import Pool
from sidecar.server.audio import AudioSource, read_audio
from sidecar.server.decoder import SPEC, Decoder
from sidecar.settings import Settings

T = TypeVar("T")
_DEADLINE_S = 120.0
_THREADS = 4  # files that it reads side by side, whatever the machine


class Decoding:
    """Starts with the first use. `python` stands in for the interpreter of the decoder's process."""

    def __init__(self, spec: ModelSpec = SPEC, python: Path | None = None) -> None:
        self.lines: list[str] = []
        self._spec = spec
        self._python = python
        self._decoder: Decoder | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def decoder(self) -> Decoder:
        if self._decoder is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            self._decoder = self.run(self._make())
            atexit.register(self.close)
        return self._decoder

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return next((each.pid for each in self.decoder.slot._replicas if each.pid), None)

    def read(self, source: AudioSource, settings: Settings) -> Audio:
        return self.run(read_audio(source, settings, self.decoder))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None or self.decoder
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE_S)

    def close(self) -> None:
        if self._decoder is not None and self._loop is not None:
            self._decoder = None
            self.run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_DEADLINE_S)
            self._loop.close()

    async def _end(self) -> None:
        await self._pool.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)

    async def _make(self) -> Decoder:
        settings = Settings.load(threads=_THREADS)
        self._pool = Pool(
            Catalogue([]), settings, lambda event, data: None, self.lines.append, lambda spec, device: self._python
        )
        return Decoder(self._pool, self._spec)


DECODING = Decoding()
"""Shared by tests that leave it as it was; a module closes it behind its last one."""
