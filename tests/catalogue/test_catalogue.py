from pathlib import Path

import pytest

from sidecar.capabilities import CAPABILITIES
from sidecar.catalogue.catalogue import BUILT_IN, Catalogue, read_spec
from sidecar.errors import ConfigError, ModelNotFoundError
from tests.product import write_fake


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.toml")), ids=lambda path: path.stem)
def test_built_in_entries_are_valid_and_named_after_their_file(path: Path) -> None:
    assert read_spec(path).id == path.stem


def test_every_capability_has_a_model_with_nothing_downloaded() -> None:
    catalogue = Catalogue([BUILT_IN])
    for capability in CAPABILITIES:
        assert catalogue.for_capability(capability.name), capability.name


def test_the_best_usable_one_comes_first(tmp_path: Path) -> None:
    catalogue = Catalogue([BUILT_IN, write_fake(tmp_path)])
    assert [spec.id for spec in catalogue.for_capability("emotion")][:2] == ["fake", "minilm"]
    assert catalogue.for_capability("nothing") == []


def test_an_entry_without_its_files_is_not_usable(tmp_path: Path) -> None:
    write_fake(tmp_path)
    path = tmp_path / "fake.toml"
    path.write_text('files = [{ path = "weights.bin" }]\n' + path.read_text())
    catalogue = Catalogue([tmp_path])
    assert catalogue.get("fake").missing_files() == ["weights.bin"]
    assert catalogue.for_capability("emotion") == []
    (tmp_path / "weights.bin").touch()
    assert Catalogue([tmp_path]).for_capability("emotion")


def test_a_user_entry_replaces_a_built_in_one(tmp_path: Path) -> None:
    write_fake(tmp_path, id="minilm")
    assert Catalogue([BUILT_IN, tmp_path]).get("minilm").runtime == "fake"


def test_unknown_id_names_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'nope'.*minilm"):
        Catalogue([BUILT_IN]).get("nope")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("id = 'x'", "title"),
        ("id = 'Über Modell'", "id"),
        ("id = ", "Invalid value"),
        ("surprise = 1", "surprise"),
    ],
)
def test_a_bad_file_is_named_with_the_field(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"bad.toml: .*{named}"):
        read_spec(path)
