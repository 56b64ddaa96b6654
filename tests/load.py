"""Clients that go on asking while a test does something else to the product."""

import threading

from tests.product import Product


class Load:
    """Requests without a pause, from several clients, until it is closed."""

    def __init__(self, product: Product, clients: int = 2) -> None:
        self.answers: list[tuple[int, str, str]] = []
        """Status, model and emotion (or the problem's text), in the order of their arrival."""
        self._product = product
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._stop.is_set():
            answer = self._product.emotion("I am so happy today!")
            body = answer.json()
            self.answers.append((answer.status, body.get("model", ""), body.get("emotion") or body["detail"]))
            self._stop.wait(0.01)

    def answered_by(self, model: str) -> bool:
        return bool(self.answers) and self.answers[-1][1] == model

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> list[tuple[int, str, str]]:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        return self.answers
