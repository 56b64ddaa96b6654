"""Logging of the server process: lines on stderr, which the supervisor keeps and rotates."""

import logging
import sys
import time


def stamp(at_s: float) -> str:
    """UTC, ISO 8601, milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}Z"


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return stamp(record.created)


def configure(level: str) -> None:
    """Once, at the start of the server process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("httpx", "httpx2", "boto3", "botocore", "urllib3"):
        # Below warnings they log addresses with signatures in them, and headers.
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(level)))
