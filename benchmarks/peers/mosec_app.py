"""mosec serving the model: arguments port, longest wait for a batch (ms), largest batch, workers."""

import sys
from typing import Any

from model import load
from mosec import Server, Worker


class EmotionWorker(Worker):
    """Batches are lists of decoded JSON bodies."""

    def __init__(self) -> None:
        super().__init__()
        self._model = load()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._model.classify([str(item["text"]) for item in data])


if __name__ == "__main__":
    port, wait_ms, max_batch, workers = sys.argv[1:5]
    # mosec reads the rest of its settings from the command line itself.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", port, "--log-level", "error"]
    server = Server()
    server.append_worker(
        EmotionWorker,
        num=int(workers),
        max_batch_size=int(max_batch),
        max_wait_time=int(wait_ms),
        route="/emotion/detect",
    )
    server.run()
