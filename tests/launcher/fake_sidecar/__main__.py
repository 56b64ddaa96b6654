"""FAKE_SIDECAR=serve: file and HTTP until stdin closes; =late: the same at the second start; =mute: never ready;
=attach: shows another one's token; =fail: dies with words.

Else print argv and environment.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOME = Path(os.environ["SIDECAR_HOME"])
HANDSHAKE, ENDING = HOME / "run" / "sidecar.json", HOME / "ending"
TOKEN, INSTANCE = "secret-token", "instance-1"
EMOTIONS = [{"label": "joy", "score": 0.97}, {"label": "neutral", "score": 0.03}]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200, {"instance_id": INSTANCE})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["text"] == "fail":
            self._answer(503, {"title": "Busy", "detail": "the model is not there"})
        elif request["text"] == "end" and not ENDING.exists():
            ENDING.touch()
            HANDSHAKE.unlink()
            self._answer(503, {"code": "shutting_down", "detail": "the sidecar is stopping"})
            os._exit(0)
        else:
            answer = {"emotion": "joy", "confidence": 0.97, "all_emotions": EMOTIONS, "processing_time_ms": 3.14}
            self._answer(200, {**answer, "model": "minilm"})

    def do_DELETE(self) -> None:
        if self.path == "/profiles/extra":
            self._answer(200, {"name": "extra", "state": "absent", "freed_bytes": 5_000_000})
        else:
            self._answer(409, {"code": "profile_needed", "detail": "base is what everything runs in"})

    def _answer(self, status: int, body: object) -> None:
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, body = 401, {}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    HANDSHAKE.parent.mkdir(parents=True, exist_ok=True)
    handshake = {
        "phase": "ready",
        "instance_id": INSTANCE,
        "supervisor": {"pid": os.getpid(), "start_time": 0},
        "host": "127.0.0.1",
        "port": port,
        "base_url": f"http://127.0.0.1:{port}",
        "token": TOKEN,
        "updated_at": time.time(),
    }
    HANDSHAKE.with_suffix(".new").write_text(json.dumps(handshake))
    HANDSHAKE.with_suffix(".new").replace(HANDSHAKE)
    if "--detach" in sys.argv:
        threading.Event().wait()
    sys.stdin.read()
    HANDSHAKE.unlink()
    (HOME / "ended").write_text("cleanly")


mode = os.environ.get("FAKE_SIDECAR")
if mode == "serve" and sys.argv[1] == "supervise":
    serve()
elif mode == "mute":
    threading.Event().wait()
elif mode == "late":  # the first one attaches to an instance that ends before anybody asks it
    if not ENDING.exists():
        ENDING.touch()
        sys.exit(0)
    serve()
elif mode == "attach":
    print(json.dumps({"token": TOKEN}), flush=True)
    sys.exit(1)
elif mode == "fail":
    sys.exit("no socket for you")
else:
    print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "prefix": sys.prefix}))
