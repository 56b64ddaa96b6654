"""What was made as files: the entry can be read, replaces older ones whole, and goes with its weights."""

from pathlib import Path

import pytest

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import Catalogue, read_spec
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.spec import BatchLimits, Head, ModelSpec
from sidecar.errors import ConfigError
from sidecar.optimise import made, texts

SPEC = ModelSpec(
    id="mine",
    title='My "own" model\\ é',
    capabilities=("emotion",),
    runtime="torch",
    profile="torch",
    licence="MIT",
    preference=40,
    languages=("en",),
    smaller="minilm",
    heads={
        "emotion": Head(
            output="scores",
            labels=("joy", "no\njoy"),
            template=("{text}", "{text_pair}"),
            lower=True,
            threshold=0.25,
            multi_label=True,
        )
    },
    batch=BatchLimits(max_items=7),
)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(
        tmp_path / "ünser ort" / "cache" / "models", Lockfile(tmp_path / "ünser ort" / "models.lock.json")
    )


def candidate(cache: ModelCache, content: bytes = b"graph") -> Path:
    folder = made.work_folder(cache, SPEC) / "int8"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_entry_says_what_the_original_said(cache: ModelCache) -> None:
    new = made.keep(cache, SPEC, "int8", candidate(cache), window=64)
    assert new == read_spec(cache.made_entry("mine-int8"))
    assert (new.id, new.runtime, new.profile, new.preference, new.made_from) == (
        "mine-int8",
        "onnx",
        "base",
        41,
        "mine",
    )
    assert new.title == 'My "own" model\\ é, int8 ONNX made on this computer'
    assert new.heads["emotion"] == SPEC.heads["emotion"].model_copy(update={"output": "logits"})
    assert (new.batch, new.window, new.smaller, new.languages) == (SPEC.batch, 64, "minilm", ("en",))
    assert new.missing_files() == [] and cache.state(new) == "complete"
    assert {file.path for file in new.files} == {"model.onnx", "tokenizer.json"}
    assert all(file.sha256 and file.size for file in new.files)
    assert cache.verify(new) == []


def test_another_run_replaces_it_whole(cache: ModelCache) -> None:
    first = made.keep(cache, SPEC, "int8", candidate(cache), window=64)
    second = made.keep(cache, SPEC, "int8", candidate(cache, b"another"), window=64)
    assert second.folder != first.folder and not first.folder.exists()
    third = made.keep(cache, SPEC, "onnx", candidate(cache), window=64)
    assert third.id == "mine-onnx" and not second.folder.exists() and not cache.made_entry("mine-int8").exists()
    assert sorted(path.name for path in cache.made_entry("x").parent.iterdir()) == ["mine-onnx.toml"]


def test_removing_takes_the_entry_along(cache: ModelCache) -> None:
    new = made.keep(cache, SPEC, "int8", candidate(cache), window=64)
    assert cache.remove(new) == len(b"graph") + len("{}")
    assert not new.folder.exists() and not cache.made_entry("mine-int8").exists()


def test_what_was_cut_short_is_swept_and_never_seen(cache: ModelCache) -> None:
    left = candidate(cache)
    catalogue = Catalogue([cache.made_entry("x").parent], cache)
    assert catalogue.specs == {}
    assert not (made.work_folder(cache, SPEC) / left.name).exists()


def test_lost_weights_are_an_obstacle_with_the_cure(cache: ModelCache) -> None:
    new = made.keep(cache, SPEC, "int8", candidate(cache), window=64)
    (new.folder / "model.onnx").unlink()
    catalogue = Catalogue([Path("none"), cache.made_entry("x").parent], cache)
    [obstacle] = catalogue.obstacles(catalogue.get("mine-int8"))
    assert obstacle.cure == "python3 launcher.py models optimise mine"


def test_ids_stay_within_their_length() -> None:
    long = SPEC.model_copy(update={"id": "m" * 64})
    assert len(made.made_id(long, "int8")) == 64 and made.made_id(long, "onnx").endswith("m-onnx")


def test_our_texts_are_many_and_of_many_lengths() -> None:
    ours = texts.read()
    assert len(ours.judged) >= 500 and len(ours.calibration) >= 128
    assert not set(ours.judged) & set(ours.calibration)
    assert len(set(ours.judged)) == len(ours.judged)
    assert min(map(len, ours.judged)) < 10 and max(map(len, ours.judged)) > 500


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="2 are too few; 625 different ones are needed"):
        texts.read(path)
    path.write_text("again and again\n" * 700, encoding="utf-8")
    with pytest.raises(ConfigError, match="1 are too few"):
        texts.read(path)
    with pytest.raises(ConfigError, match=r"nothing\.txt"):
        texts.read(tmp_path / "nothing.txt")
