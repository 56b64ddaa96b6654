"""LitServe serving the model: arguments port, batch timeout (s), largest batch, queue ("default" or "zmq"), workers."""

import sys
from typing import Any

import litserve
from model import Model, load


class EmotionAPI(litserve.LitAPI):
    """Batches are lists of texts."""

    def setup(self, device: str) -> None:
        self._model: Model = load()

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["text"])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, x: list[str]) -> list[dict[str, Any]]:
        return self._model.classify(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = EmotionAPI(max_batch_size=int(sys.argv[3]), batch_timeout=float(sys.argv[2]), api_path="/emotion/detect")
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=int(sys.argv[5]), fast_queue=sys.argv[4] == "zmq"
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False
    )
