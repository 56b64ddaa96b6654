"""Sound inside of JSON: base64, perhaps an hour of it, which nobody else shall wait for.

Whatever parses 150 MB at once holds the interpreter's lock for half a second, in whichever thread it runs. So the one
long string is found with a few searches of the raw body, taken out, and decoded slice by slice.
"""

import base64
import binascii
import io
import secrets
from typing import Any

import msgspec

from sidecar.capabilities.samples import free
from sidecar.errors import AudioError

Text = str | bytes | bytearray | memoryview
"""ASCII."""

_LONG_BYTES = 1 << 20
_SLICE = 1 << 20
_SEARCH = 1 << 24
_STRINGS = 200  # that are looked at before the long one


def parse(body: bytearray, field: str) -> Any:
    """The value of a JSON body. What `field` holds is a view of the body, and no str, where it is a long string.

    Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError.
    """
    found = _long_string(body)
    if found is None:
        return msgspec.json.decode(body)
    start, end = found
    mark = secrets.token_hex()
    rest = b"".join((body[:start], mark.encode(), body[end:]))
    fields = msgspec.json.decode(rest)
    if not isinstance(fields, dict) or fields.get(field) != mark:
        return msgspec.json.decode(body)  # some other string is that long
    fields[field] = memoryview(body)[start:end]
    return fields


def _long_string(body: bytearray) -> tuple[int, int] | None:
    """Where the contents of the first long string without any escapes lie."""
    end = -1
    for _ in range(_STRINGS):
        start = _find(body, b'"', end + 1) + 1
        end = _end_of_string(body, start) if start else -1
        if end < 0:
            return None
        if end - start >= _LONG_BYTES:
            return None if _find(body, b"\\", start, end) >= 0 else (start, end)
    return None


def _end_of_string(body: bytearray, start: int) -> int:
    at = start
    while (end := _find(body, b'"', at)) >= 0:
        before = body[max(start, end - 64) : end]
        slashes = len(before) - len(before.rstrip(b"\\"))
        if slashes == 64:
            return -1
        if slashes % 2 == 0:
            return end
        at = end + 1
    return -1


def _find(body: bytearray, sought: bytes, at: int, end: int | None = None) -> int:
    """As `bytearray.find`, stretch by stretch."""
    last = len(body) if end is None else end
    for start in range(at, last, _SEARCH):
        if (found := body.find(sought, start, min(start + _SEARCH, last))) >= 0:
            return found
    return -1


def decoded(text: Text) -> io.BytesIO:
    """Base64, with or without a `data:` head, with or without line breaks. Raises AudioError."""
    ascii_ = memoryview(text.encode("ascii", "replace") if isinstance(text, str) else text)
    out = io.BytesIO()
    left, ended = b"", False
    try:
        for at in range(_head_bytes(ascii_), len(ascii_), _SLICE):
            piece = left + b"".join(bytes(ascii_[at : at + _SLICE]).split())
            whole = len(piece) // 4 * 4
            if ended and piece:
                raise ValueError("there is more behind its end")
            out.write(base64.b64decode(piece[:whole], validate=True))
            ended, left = piece[:whole].endswith(b"="), piece[whole:]
        out.write(base64.b64decode(left, validate=True))
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"audio: no valid base64: {error}") from None
    return out


def let_go(text: memoryview) -> None:
    """Free the body that it is a view of: what is asked about the sound may take minutes."""
    body = text.obj
    text.release()
    assert isinstance(body, bytearray)
    free(body)


def _head_bytes(text: memoryview) -> int:
    head = bytes(text[:_SLICE])
    return head.find(b",") + 1 if head.startswith(b"data:") else 0
