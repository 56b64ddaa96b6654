"""Downloads that were asked for and have not ended: the next server goes on with them when this one dies or stops."""

import json
import logging
import os
from pathlib import Path

log = logging.getLogger("sidecar.server")


class Unfinished:
    """Ids of models, in a file. Where that cannot be written, nothing is remembered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ids(self) -> list[str]:
        """In the order in which they were asked for."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    def add(self, model_id: str) -> None:
        """It has begun, or waits for its turn."""
        if model_id not in (ids := self.ids()):
            self._write([*ids, model_id])

    def remove(self, model_id: str) -> None:
        """It has come to its end, whatever that was."""
        if model_id in (ids := self.ids()):
            self._write([each for each in ids if each != model_id])

    def _write(self, ids: list[str]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(ids), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("%s cannot be written (%s): downloads will not go on by themselves", self._path, error)
