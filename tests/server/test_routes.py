"""What /openapi.json says of all routes."""

from typing import Any

from tests.product import Product


def paths(product: Product) -> dict[str, Any]:
    found: dict[str, Any] = product.call("GET", "/openapi.json").json()["paths"]
    return found


def test_every_body_has_an_example(product: Product) -> None:
    bodies = {
        f"{method.upper()} {path}": operation["requestBody"]["content"].values()
        for path, operations in paths(product).items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }
    assert len(bodies) > 15
    bare = [name for name, forms in bodies.items() if not any({"example", "examples"} & form.keys() for form in forms)]
    assert bare == []


def test_answers_that_are_no_json_say_so(product: Product) -> None:
    def declared(path: str) -> set[str]:
        return set(paths(product)[path]["get"]["responses"]["200"]["content"])

    assert declared("/events") == {"text/event-stream"}
    assert declared("/metrics") == {"text/plain", "application/json"}
