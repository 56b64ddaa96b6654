"""Does every route answer. Those that change something are only asked whether they are there."""

import http.client
import re
from collections.abc import Iterator
from typing import Any

from sidecar.doctor.client import Answer, Client
from sidecar.doctor.finding import Finding
from sidecar.settings import Settings

NOBODY = "doctor-asks-for-nobody"
# JSON that no route takes, so that nothing comes of it but a refusal.
_FITS_NOWHERE: list[object] = []
# Routes with a body that leave something behind: a session, another model in memory, another threshold.
_ACTS = re.compile(r"/(sessions|threshold|switch|preload|load|unload|reset|cancel|interrupt|analyze)\b")


def endpoints(client: Client, settings: Settings) -> Iterator[Finding]:
    """Every operation of /openapi.json: a good answer, or an error that names itself."""
    document = client.call("GET", "/openapi.json").json()
    if not isinstance(document, dict) or not document.get("paths"):
        yield Finding("fail", "GET /openapi.json", "describes no routes")
        return
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield _ask(client, method.upper(), path, operation)


def _ask(client: Client, method: str, path: str, operation: dict[str, Any]) -> Finding:
    """GET as it is, inference with its documented example; whatever would change something must refuse or be there."""
    concrete = re.sub(r"\{[^}]+\}", NOBODY, path)
    name = f"{method} {path}"
    required = any(each.get("required") for each in operation.get("parameters", []))
    body = None if method == "GET" else _body(path, operation)
    try:
        if method != "GET" and body is None and concrete == path:
            return _is_there(name, client.call("PATCH", concrete))
        answer = client.call(method, concrete, body)
    except (OSError, http.client.HTTPException) as error:
        return Finding("fail", name, f"no answer: {type(error).__name__}: {error}", "report it with the log")
    return _judge(name, answer, expects_refusal=required or body == _FITS_NOWHERE)


def _body(path: str, operation: dict[str, Any]) -> object:
    if "requestBody" not in operation:
        return None
    example = operation["requestBody"].get("content", {}).get("application/json", {}).get("example")
    return _FITS_NOWHERE if example is None or _ACTS.search(path) else example


def _is_there(name: str, answer: Answer) -> Finding:
    there = answer.status == 405
    return Finding("ok" if there else "fail", name, "is there (not called)" if there else f"status {answer.status}")


def _judge(name: str, answer: Answer, expects_refusal: bool) -> Finding:
    figures = {"status": answer.status, "took_ms": round(answer.took_ms, 2)}
    code, detail = answer.problem()
    if answer.status < 400:
        return Finding("ok", name, f"{answer.status}, {answer.took_ms:.1f} ms", "", figures)
    if not code:
        return Finding("fail", name, f"{answer.status} without a code", "report it with the log", figures)
    told = f"{answer.status} {code}: {detail}"
    if answer.status < 500:
        # An id or body of ours that nobody knows has to be refused; a documented example need not work here.
        return Finding("ok" if expects_refusal else "info", name, told, "", figures)
    if answer.status in (503, 507):
        return Finding("warn", name, told, "", figures)
    return Finding("fail", name, told, "report it with the log", figures)
