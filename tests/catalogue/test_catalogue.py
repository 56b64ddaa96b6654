from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.capabilities import CAPABILITIES
from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.catalogue import BUILT_IN, Catalogue, read_spec
from sidecar.catalogue.downloader import download
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.profiles import Profiles
from sidecar.catalogue.spec import ADAPTED, ModelSpec, is_commit
from sidecar.catalogue.spec import CAPABILITIES as KNOWN
from sidecar.errors import ConfigError, ModelNotFoundError
from sidecar.runner.adapters import ADAPTERS
from sidecar.settings import Settings
from tests.catalogue.conftest import TOML
from tests.product import write_fake


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.toml")), ids=lambda path: path.stem)
def test_built_in_entries_are_valid_and_named_after_their_file(path: Path) -> None:
    assert read_spec(path).id == path.stem


@pytest.mark.parametrize("spec", [spec for spec in Catalogue([BUILT_IN]).specs.values() if spec.is_hub])
def test_how_much_a_download_fetches_is_known_before(spec: ModelSpec) -> None:
    known = sum(file.size or 0 for file in spec.files) / 1e6
    assert spec.download_mb >= int(known) if spec.download_mb else all(file.size for file in spec.files)


def test_every_capability_has_a_model_with_nothing_downloaded() -> None:
    catalogue = Catalogue([BUILT_IN])
    for capability in (each for each in CAPABILITIES if not each.addressed):
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


def test_a_pickle_that_is_here_still_needs_the_users_word(tmp_path: Path) -> None:
    more = 'revision = "' + "a" * 40 + '"'
    files = 'files = [{ path = "weights.bin", pickle = true }]\n[heads.emotion]'
    (tmp_path / "tiny.toml").write_text(
        TOML.format(id="tiny", repo="acme/tiny", runtime="fake", source=more, more=files), encoding="utf-8"
    )
    cache = ModelCache(tmp_path / "cache" / "models", Lockfile(tmp_path / "models.lock.json"))
    catalogue = Catalogue([tmp_path], cache)
    folder = catalogue.get("tiny").folder
    folder.mkdir(parents=True)
    (folder / "weights.bin").touch()
    [obstacle] = catalogue.obstacles(catalogue.get("tiny"))
    assert obstacle.reason == "nobody allowed its pickle weights.bin"
    assert obstacle.cure == "python3 launcher.py models pull tiny --allow-pickle weights.bin"
    cache.lockfile.agree("tiny", pickles=("weights.bin",))
    assert catalogue.obstacles(catalogue.get("tiny")) == []


def test_a_user_entry_replaces_a_built_in_one(tmp_path: Path) -> None:
    write_fake(tmp_path, id="minilm")
    assert Catalogue([BUILT_IN, tmp_path]).get("minilm").runtime == "fake"


def test_two_entries_of_the_user_with_one_id_are_told_and_the_first_stays(tmp_path: Path) -> None:
    folders = [BUILT_IN, tmp_path / "data", tmp_path / "asked"]
    write_fake(folders[1], id="own")
    first = folders[1] / "own.toml"
    (folders[1] / "copy.toml").write_text(first.read_text().replace("a fake", "a copy"))
    write_fake(folders[2], id="own", preference=7)
    write_fake(folders[2], id="minilm")
    catalogue = Catalogue(folders)
    assert catalogue.get("own").title == "a fake" and catalogue.get("own").preference == 100
    assert catalogue.get("minilm").runtime == "fake", "one of ours may be replaced"
    second, third = catalogue.faults
    for fault, path in ((second, folders[1] / "copy.toml"), (third, folders[2] / "own.toml")):
        assert fault.id == "own" and fault.file == path
        assert str(path) in fault.reason and str(first) in fault.reason and "'own'" in fault.reason
    assert Catalogue([BUILT_IN, tmp_path / "data", tmp_path / "data" / ".." / "data"]).faults == [second]


def test_an_unknown_capability_is_told_and_ours_goes_on(tmp_path: Path) -> None:
    write_fake(tmp_path, id="minilm")
    path = tmp_path / "minilm.toml"
    path.write_text(path.read_text().replace('["emotion"]', '["emotion", "emotoin"]'))
    catalogue = Catalogue([BUILT_IN, tmp_path])
    [fault] = catalogue.faults
    assert fault.id == "minilm" and fault.file == path
    assert str(path) in fault.reason and "'emotoin' is none of" in fault.reason and "backchannel" in fault.reason
    assert catalogue.get("minilm").runtime == "onnx"


def test_what_the_sidecar_keeps_to_itself_is_no_models(tmp_path: Path) -> None:
    path = write_fake(tmp_path, id="own") / "own.toml"
    path.write_text(path.read_text().replace('["emotion"]', '["decode"]'))
    [fault] = Catalogue([tmp_path]).faults
    assert fault.file == path and "decode is no model's" in fault.reason


def test_capabilities_that_an_entry_may_name_are_ours_and_those_of_models_that_wait() -> None:
    named = {name for spec in Catalogue([BUILT_IN]).specs.values() for name in spec.capabilities}
    assert named | {each.name for each in CAPABILITIES} == KNOWN


def test_an_unknown_profile_is_told_and_no_cure_is_made_up(tmp_path: Path) -> None:
    write_fake(tmp_path / "catalogue", id="own", more='profile = "torhc"')
    catalogue = Catalogue.of(Settings.load(home=tmp_path))
    [fault] = catalogue.faults
    assert fault.id == "own" and "own.toml" in fault.reason and "'torhc' is none of base, " in fault.reason
    assert "own" not in catalogue.specs
    with pytest.raises(ModelNotFoundError, match=r"'own'.*'torhc' is none of"):
        catalogue.get("own")
    for spec in catalogue.specs.values():
        for obstacle in catalogue.obstacles(spec):
            assert "--with" not in obstacle.cure or obstacle.cure.split()[-1] in Profiles.of(Settings.load()).names()


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


def test_runtimes_with_an_adapter_are_those_of_the_runner() -> None:
    assert set(ADAPTERS) == ADAPTED


def test_a_model_of_torch_is_one_that_its_adapter_can_load() -> None:
    for spec in Catalogue([BUILT_IN]).specs.values():
        classifies = {"emotion", "backchannel", "classify"} >= set(spec.capabilities)
        assert spec.runtime != "torch" or (classifies and spec.heads), spec.id


def test_the_table_of_models_is_there() -> None:
    specs = Catalogue([BUILT_IN]).specs
    assert len(specs) >= 27
    for spec in specs.values():
        assert spec.smaller is None or spec.smaller in specs, spec.id
        assert spec.smaller is None or specs[spec.smaller].memory_mb < spec.memory_mb, spec.id
        assert spec.memory_mb, spec.id
    pinned = [spec for spec in specs.values() if spec.source and is_commit(spec.source.revision)]
    assert len(pinned) >= 12


def test_an_entry_without_adapter_or_profile_is_never_picked(tmp_path: Path) -> None:
    write_fake(tmp_path)
    for runtimes, profiles, kinds in (
        ({"onnx"}, ("base",), ["runtime"]),
        ({"fake"}, (), ["profile"]),
        ((), (), ["runtime"]),
    ):
        catalogue = Catalogue([tmp_path], runtimes=runtimes, profiles=lambda names=profiles: names)
        assert [one.kind for one in catalogue.obstacles(catalogue.get("fake"))] == kinds
        assert catalogue.for_capability("emotion") == []


def test_a_refresh_finds_what_came_in_the_meantime(
    tmp_path: Path, cache: ModelCache, publish: Callable[..., str]
) -> None:
    publish()
    profiles = {"base"}
    (tmp_path / "tiny.toml").write_text(
        TOML.format(
            id="tiny", repo="acme/tiny", runtime="onnx", source="", more='profile="new"\nfiles=[{path="model.onnx"}]'
        )
    )
    catalogue = Catalogue([BUILT_IN, tmp_path], cache, profiles=lambda: profiles)
    assert catalogue.for_capability("emotion")[0].id == "minilm"
    folder = download(catalogue.get("tiny"), cache)
    profiles.add("new")
    assert catalogue.for_capability("emotion")[0].id == "minilm", "looked up once"
    catalogue.refresh()
    best = catalogue.for_capability("emotion")[0]
    assert best.id == "tiny" and best.folder == folder and best.files[0].size == 300_000
    (tmp_path / "broken.toml").write_text("id = ")
    catalogue.refresh()
    assert catalogue.get("tiny") == best, "the others are known all the same"
    assert "broken.toml" in catalogue.faults[0].reason


def test_a_folder_or_a_file_of_this_computer_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "chat.gguf").touch()
    path = tmp_path / "own.toml"
    text = 'id="own"\ntitle="t"\ncapabilities=["chat"]\nruntime="llama"\nlicence="none"\n[source]\npath="{}"\n'
    path.write_text(text.format("weights/chat.gguf"))
    spec = read_spec(path)
    assert spec.folder == tmp_path / "weights" and [file.path for file in spec.files] == ["chat.gguf"]
    path.write_text(text.format(tmp_path / "weights"))
    assert read_spec(path).folder == tmp_path / "weights" and not read_spec(path).is_hub


def test_the_users_data_folder_is_read(tmp_path: Path) -> None:
    write_fake(tmp_path / "catalogue")
    catalogue = Catalogue.of(Settings.load(home=tmp_path))
    assert catalogue.get("fake").folder == tmp_path / "catalogue"


HUB = (
    'id="x"\ntitle="t"\ncapabilities=["asr"]\nruntime="torch"\nlicence="l"\n{more}\n[source]\nrepo="{repo}"\n{source}\n'
)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"more": 'files=[{path="../evil.json"}]'}, "no path inside"),
        ({"more": 'files=[{path="/etc/passwd"}]'}, "no path inside"),
        ({"more": 'files=[{path="a\\\\b"}]'}, "character"),
        ({"more": 'files=[{path="C:x"}]'}, "character"),
        ({"more": 'files=[{path="sub/NUL.txt"}]'}, "device"),
        ({"more": 'files=[{path="a.part"}]'}, "unfinished"),
        ({"more": 'files=[{path="a"},{path="A"}]'}, "named twice"),
        ({"more": 'files=[{path="pytorch_model.bin"}]'}, "pickle = true"),
        ({"more": 'files=[{path="a", sha256="zz"}]'}, "sha256"),
        ({}, "names its `files`"),
        ({"repo": "../up", "source": 'include=["*"]'}, "repo"),
        ({"source": 'include=["*"]\nrevision="../x"'}, "revision"),
        ({"source": 'include=["*"]\npath="x"'}, "one of `repo`, `s3`, `path` and `setting`"),
    ],
)
def test_what_a_toml_may_not_say(values: dict[str, str], named: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(HUB.format(**{"more": "", "repo": "a/b", "source": "", **values}))
    with pytest.raises(ConfigError, match=named):
        read_spec(path)
