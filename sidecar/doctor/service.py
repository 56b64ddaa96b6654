"""Does it answer rightly: health, emotions, and errors that are answers."""

import http.client
from collections.abc import Iterator
from typing import NamedTuple

from sidecar.doctor.client import Client
from sidecar.doctor.finding import Finding, Level
from sidecar.settings import Settings

# One sentence of each emotion on which a classifier that works cannot be of two minds.
EMOTIONS = {
    "anger": "I am furious, they lied to my face and charged me twice for it!",
    "disgust": "The bathroom was filthy, the smell made me gag, it was revolting.",
    "fear": "I am terrified, someone is trying to break into the house.",
    "joy": "I am so happy today, this is the best news ever!",
    "neutral": "The meeting starts at ten in room four.",
    "sadness": "I miss my grandmother so much, I cried all night after the funeral.",
    "surprise": "Wow, I can't believe it, I never expected to see you here!",
}


def health(client: Client, settings: Settings) -> Iterator[Finding]:
    """Whether it is up, is the instance of the handshake, and can do what is enabled."""
    live = client.call("GET", "/health/live", headers={"Authorization": ""})
    yield Finding("ok" if live.status == 200 else "fail", "GET /health/live without a token", f"status {live.status}")
    answer = client.call("GET", "/health")
    body = answer.json() or {}
    same = answer.status == 200 and body.get("instance_id") == client.handshake.instance_id
    yield Finding(
        "ok" if same else "fail",
        "GET /health",
        f"status {answer.status}, " + ("the instance of the handshake" if same else "not that of the handshake"),
        "" if same else "python3 launcher.py stop, then start it again",
    )
    loaded = [name for name, ready in body.get("models_loaded", {}).items() if ready]
    level: Level = "ok" if body.get("status") == "healthy" else "warn"
    figures = {"status": body.get("status"), "loaded": loaded, "device": body.get("device")}
    why = f"{body.get('device')} ({body.get('device_reason')})"
    yield Finding(level, str(body.get("status")), f"loaded: {', '.join(loaded) or 'nothing yet'}; {why}", "", figures)
    for warning in body.get("warnings", []):
        yield Finding("warn", "it says", warning)
    restarts = client.handshake.restarts
    if restarts.count:
        yield Finding(
            "warn",
            "restarts",
            f"its server was restarted {restarts.count} times within {restarts.window_s:g} s",
            f"look into the log in {client.handshake.log_dir}",
        )


def emotion(client: Client, settings: Settings) -> Iterator[Finding]:
    """All seven emotions, each from a sentence that leaves no doubt."""
    for label, text in EMOTIONS.items():
        answer = client.call("POST", "/emotion/detect", {"text": text})
        body = answer.json() or {}
        found, model = body.get("emotion"), body.get("model")
        if answer.status != 200:
            code, detail = answer.problem()
            yield Finding("fail", label, f"status {answer.status} {code}: {detail}", _why(model))
            continue
        scores = {score["label"]: score["score"] for score in body["all_emotions"]}
        faults = [] if abs(sum(scores.values()) - 1) < 0.01 else [f"the scores add up to {sum(scores.values()):.3f}"]
        faults += [] if set(scores) == set(EMOTIONS) else [f"its labels are {', '.join(sorted(scores))}"]
        faults += [] if found == label else [f"{model} says {found} to {text!r}"]
        detail = "; ".join(faults) or f"{body['confidence']:.2f} ({model}, {answer.took_ms:.1f} ms)"
        figures = {"confidence": body["confidence"], "model": model, "took_ms": round(answer.took_ms, 2)}
        yield Finding("fail" if faults else "ok", label, detail, _why(model) if faults else "", figures)


def _why(model: object) -> str:
    return f"python3 launcher.py models verify {model}" if model else "python3 launcher.py models list"


class Wrong(NamedTuple):
    """A request that must be refused, and how."""

    what: str
    status: int
    code: str
    method: str
    path: str
    body: object = None
    headers: dict[str, str] | None = None


def errors(client: Client, settings: Settings) -> Iterator[Finding]:
    """Whether wrong requests get the right refusal, in a shape that programs can read."""
    detect = "/emotion/detect"
    wrongs = [
        Wrong("bad JSON", 400, "invalid_json", "POST", detect, b"{no json"),
        Wrong("a field of the wrong type", 422, "invalid_input", "POST", detect, {"text": 7}),
        Wrong("a field that is missing", 422, "invalid_input", "POST", detect, {}),
        Wrong("a model that does not exist", 404, "model_not_found", "POST", detect, {"text": "x", "model": "nobody"}),
        Wrong("a path that does not exist", 404, "not_found", "GET", "/no/such/path"),
        Wrong("a wrong method", 405, "method_not_allowed", "DELETE", detect),
        # Announced, never sent: the refusal must not wait for it.
        Wrong("a body too large", 413, "body_too_large", "POST", detect, None, _ANNOUNCED),
        Wrong("a foreign Host", 403, "forbidden", "GET", "/health", None, {"Host": "example.com"}),
        Wrong("a foreign Origin", 403, "forbidden", "GET", "/health", None, {"Origin": "https://example.com"}),
    ]
    if client.handshake.token:
        wrongs.append(Wrong("no token", 401, "unauthorized", "GET", "/health", None, {"Authorization": ""}))
        wrong_token = {"Authorization": "Bearer wrong"}
        wrongs.append(Wrong("a wrong token", 401, "unauthorized", "GET", "/health", None, wrong_token))
    else:
        yield Finding("info", "tokens", "it runs with --auth off: every program of this computer may use it")
    for wrong in wrongs:
        yield _refusal(client, wrong)
    after = client.call("GET", "/health")
    yield Finding("ok" if after.status == 200 else "fail", "afterwards", f"GET /health gives {after.status}")


_ANNOUNCED = {"Content-Length": str(10**12), "Expect": "100-continue"}


def _refusal(client: Client, wrong: Wrong) -> Finding:
    try:
        answer = client.call(wrong.method, wrong.path, wrong.body, headers=wrong.headers)
    except (OSError, http.client.HTTPException) as error:
        return Finding("fail", wrong.what, f"no answer: {type(error).__name__}: {error}")
    code, detail = answer.problem()
    told = f"{answer.status} {code}: {detail}" if code else f"{answer.status} without a code"
    if (answer.status, code) == (wrong.status, wrong.code):
        return Finding("ok", wrong.what, told)
    return Finding("fail", wrong.what, f"{told}; expected {wrong.status} {wrong.code}", "report it with the log")
