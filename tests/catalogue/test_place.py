"""Where a setting says that a model of the user's own is."""

from pathlib import Path
from typing import Any

import pytest

from sidecar.catalogue.catalogue import BUILT_IN, Catalogue
from sidecar.catalogue.place import settled
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ConfigError
from sidecar.settings import Settings

NAME = "SIDECAR_BACKCHANNEL_MODEL"


def spec(**more: Any) -> ModelSpec:
    values = {"id": "own", "title": "t", "capabilities": ["backchannel"], "runtime": "onnx", "licence": "yours"}
    values |= {"files": [{"path": "config.json"}], "heads": {"backchannel": {"template": "{text} {text_pair}"}}}
    source = {"setting": NAME, "include": more.pop("include", ("model.onnx", "onnx/model.onnx"))}
    return ModelSpec.model_validate({**values, "source": source, **more})


def placed(place: str, **more: Any) -> ModelSpec:
    return settled(spec(**more), {NAME: place})


def test_silence_changes_nothing() -> None:
    assert placed("") == spec() and settled(spec(), {}) == spec()
    assert not spec().is_hub


@pytest.mark.parametrize(
    ("place", "repo", "revision"),
    [("owner/name", "owner/name", None), ("owner/name@v1.0", "owner/name", "v1.0"), ("name", "name", None)],
)
def test_a_hub_id(place: str, repo: str, revision: str | None) -> None:
    found = placed(place)
    assert found.source and (found.source.repo, found.source.revision) == (repo, revision)
    assert found.is_hub and found.source.include == ("model.onnx", "onnx/model.onnx")
    assert found.heads == spec().heads and found.files == spec().files


@pytest.mark.parametrize("place", ["s3://bucket/a/b", "s3://bucket/a/b/"])
def test_a_bucket(place: str) -> None:
    found = placed(place)
    assert found.source and found.source.origin == "s3://bucket/a/b" and found.is_hub


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = placed(str(tmp_path / "nothing"))
    assert missing.missing_files() == ["config.json", "model.onnx"] and not missing.is_hub
    (tmp_path / "onnx").mkdir()
    for name in ("config.json", "onnx/model.onnx", "other.onnx"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path.parent)
    for place in (str(tmp_path), tmp_path.name, f"./{tmp_path.name}"):
        found = placed(place)
        assert found.folder == tmp_path and found.missing_files() == []
        assert [file.path for file in found.files] == ["config.json", "onnx/model.onnx"]


@pytest.mark.parametrize(
    "place", ["http://x/y", "a b", "owner/name/more", "s3://", "s3://UPPER/x", "s3://s3://b", "@main"]
)
def test_what_is_no_place_is_named(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"{NAME}=.* is no folder, hub id or s3://bucket/prefix .*S3_BUCKET_NAME"):
        placed(place)


def test_a_pickle_is_no_less_one_for_coming_from_there() -> None:
    with pytest.raises(ConfigError, match="pickle"):
        placed("owner/name", files=[{"path": "pytorch_model.bin"}])


def test_the_bucket_settings_are_a_place() -> None:
    def place(**values: str) -> str:
        return Settings.load(**values).backchannel_place

    assert place() == ""
    assert place(s3_bucket="bucket") == "s3://bucket"
    assert place(s3_bucket="bucket", s3_prefix="/a/b/") == "s3://bucket/a/b"
    assert place(s3_bucket="bucket", backchannel_model="owner/name") == "owner/name"


def test_secrets_show_nowhere_but_reach_children() -> None:
    settings = Settings.load(s3_access_key_id="AKIA", s3_secret_access_key="hidden")
    assert "hidden" not in repr(settings) and "AKIA" not in repr(settings)
    assert settings.as_environment()["S3_SECRET_ACCESS_KEY"] == "hidden"


def test_a_wrong_place_silences_no_other_model() -> None:
    catalogue = Catalogue([BUILT_IN], places={NAME: "http://x"})
    assert "minilm" in catalogue.specs and "distilbert-onnx" not in catalogue.specs
    assert len(catalogue.faults) == 2 and all(NAME in fault.reason for fault in catalogue.faults)
