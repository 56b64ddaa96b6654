"""Which field of what somebody sent a validation error is about, in words for whoever sent it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_OBJECT = re.compile(r"a valid dictionary or (object to extract fields from|instance of \w+)")
_SHOULD = "Input should be "


class Fault(NamedTuple):
    """`field` is "" for the body as a whole; `more` counts further fields with faults."""

    field: str
    said: str
    more: int


def first_fault(errors: Sequence[Mapping[str, Any]], sent: Any) -> Fault:
    """The first field with faults of pydantic's `errors`; `sent` is what was validated: a value, or JSON.

    A location also has names of ours, such as the branches of a union: only what can be found in `sent` is told.
    """
    if isinstance(sent, bytes):
        try:
            sent = json.loads(sent)  # which takes NaN and lone surrogates, as pydantic does
        except (ValueError, RecursionError):
            sent = None
    located = [(_field(each["loc"], sent, each["type"] == "missing"), _said(each["msg"])) for each in errors]
    # Of a union every branch says what it would have taken; the one that came furthest is the one that was meant.
    outer = {above for name in {name for name, _ in located} for above in _above(name)}
    located = [one for one in located if one[0] not in outer]
    field = located[0][0]
    first, *others = dict.fromkeys(said for name, said in located if name == field)
    said = " or ".join([first, *(other.removeprefix(_SHOULD) for other in others)])
    return Fault(field, said, len({name for name, _ in located}) - 1)


def _field(location: Sequence[str | int], sent: Any, is_missing: bool) -> str:
    names: list[str | int] = []
    here: Any = sent
    for part in location:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and part in range(len(here))):
            names.append(part)
            here = here[part]  # type: ignore[index]
    if is_missing:
        names.append(location[-1])
    return ".".join(map(str, names))


def _above(name: str) -> Iterator[str]:
    """`a` and `a.b` of `a.b.c`."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _said(message: str) -> str:
    return _OBJECT.sub("an object", message.removeprefix("Value error, "))
