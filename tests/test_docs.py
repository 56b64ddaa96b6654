"""What the documentation must name: a setting, route, event or phase that it does not mention fails here."""

import json
import re

import pytest

from sidecar.capabilities import CAPABILITIES
from sidecar.catalogue.cli import _parser
from sidecar.optimise.command import COMMAND
from sidecar.server.state import ServerState
from sidecar.settings import ROOT
from tests.product import Product

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_route_is_in_the_readme(product: Product) -> None:
    for path, operations in product.call("GET", "/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in README


def test_every_phase_is_in_the_readme() -> None:
    schema = json.loads((ROOT / "clients" / "handshake.schema.json").read_text(encoding="utf-8"))
    for phase in schema["properties"]["phase"]["enum"]:
        assert f"`{phase}`" in README


def test_every_event_is_in_the_readme() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sidecar").rglob("*.py"))
    events = set(re.findall(r"publish\(\s*\"(\w+)\"", source))
    assert {"phase", "model", "progress"} <= events
    assert ServerState.publish.__doc__
    for event in events:
        assert f"`{event}`" in README


def test_commands_about_models_are_what_the_readme_says() -> None:
    lines = re.findall(r"(?:launcher\.py |`)models ([a-z]+[^#`\n]*)", README)
    assert len(lines) > 8
    for line in lines:
        words = [word for word in line.replace("[", " ").replace("]", " ").split() if word != "…"]
        assert _parser([COMMAND]).parse_args(words), line


@pytest.mark.parametrize("folder", ["installer/profiles", "models/build", "models/embedded", "benchmarks"])
def test_folders_that_people_open_have_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").is_file()


def test_every_tensor_is_in_the_readme() -> None:
    for capability in CAPABILITIES:
        if capability.tensors:
            row = next(line for line in README.splitlines() if line.startswith(f"| `{capability.name}` | `"))
            for tensor in (*capability.tensors.inputs, *capability.tensors.outputs):
                assert f"`{tensor.name}` {tensor.datatype} {list(tensor.shape)}" in row
