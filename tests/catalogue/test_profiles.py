"""Which environments count: made here by hand, byte by byte, as the launcher leaves them."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest

from sidecar.catalogue.catalogue import Catalogue
from sidecar.catalogue.profiles import BUILT_IN, Profiles, takes_cpu_builds
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import ConfigError, ModelUnavailableError, ProfileMissingError, ProfileNotFoundError
from sidecar.process import ENVIRONMENT_PYTHON
from sidecar.settings import Settings
from tests.product import ROOT, write_fake

LOCK = "tiny==1.0 \\\n    --hash=sha256:0\n"


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "extra.toml").write_text('name = "extra"\ndescription = "d"\nprobe = []\nsize_mb = 1\n')
    (folder / "extra.lock").write_text(LOCK)
    return Profiles(folder, tmp_path / "env")


def make(
    tmp_path: Path, name: str = "extra-0123456789ab", lock: str = LOCK, finished_at: float | None = 1.0, home: str = ""
) -> Path:
    root = tmp_path / "env" / name
    python = root / ENVIRONMENT_PYTHON
    python.parent.mkdir(parents=True)
    python.touch()
    (root / "pyvenv.cfg").write_text(f"home = {home or Path(sys.executable).parent}\nversion = 3\n")
    if finished_at is not None:
        stamp = {"lock_sha256": hashlib.sha256(lock.encode()).hexdigest(), "finished_at": finished_at}
        (root / "complete.json").write_text(json.dumps(stamp))
    return python


def model(profile: str, **more: object) -> ModelSpec:
    spec = {"id": "m", "title": "m", "capabilities": ("emotion",), "runtime": "onnx", "licence": "none"}
    return ModelSpec.model_validate({**spec, "profile": profile, **more})


def test_onnx_models_of_base_run_in_the_environment_of_cuda_where_there_is_one(
    profiles: Profiles, tmp_path: Path
) -> None:
    (tmp_path / "profiles" / "cuda.lock").write_text(LOCK)
    assert profiles.needed(model("base"), "cuda") == "base"
    make(tmp_path, "cuda-0123456789ab")
    assert {device: profiles.needed(model("base"), device) for device in ("auto", "cuda", "cpu", "mps")} == {
        "auto": "cuda", "cuda": "cuda", "cpu": "base", "mps": "base",
    }  # fmt: skip
    assert profiles.needed(model("base", device="cpu"), "auto") == "base"
    assert profiles.needed(model("base", runtime="espeak"), "auto") == "base"
    assert profiles.needed(model("extra"), "auto") == "extra"


def test_only_a_finished_environment_of_the_present_lock_counts(profiles: Profiles, tmp_path: Path) -> None:
    assert profiles.installed() == {"base"} and profiles.interpreter(model("base"), "auto") is None
    for state, word, values in (
        ("absent", "not installed", None),
        ("unfinished", "not finished", {"finished_at": None}),
        ("outdated", "earlier version", {"name": "extra-000000000001", "lock": "tiny==0.9\n"}),
        ("broken", "Python is gone", {"name": "extra-000000000002", "home": "/gone/bin"}),
    ):
        if values:
            make(tmp_path, **values)  # type: ignore[arg-type]
        assert profiles.state("extra") == state and profiles.installed() == {"base"}
        with pytest.raises(ProfileMissingError, match=f"{word}.*python3 launcher.py install --with extra"):
            profiles.interpreter(model("extra"), "auto")
    before = profiles.fingerprint()
    python = make(tmp_path, "extra-000000000003")
    assert profiles.fingerprint() != before
    assert profiles.state("extra") == "installed" and profiles.installed() == {"base", "extra"}
    assert profiles.interpreter(model("extra"), "auto") == python
    profiles.leaving.add("extra")
    assert profiles.installed() == {"base"}


def test_of_two_variants_the_newest_is_taken(profiles: Profiles, tmp_path: Path) -> None:
    (tmp_path / "profiles" / "extra-cpu.lock").write_text("tiny==1.0+cpu\n")
    cpu = make(tmp_path, "extra-00000000000a", "tiny==1.0+cpu\n", 1.0)
    assert profiles.python("extra") == cpu
    cuda = make(tmp_path, "extra-00000000000b", LOCK, 2.0)
    assert profiles.python("extra") == cuda


@pytest.mark.parametrize("stamp", ["", "[]", '{"lock_sha256": 3}', "{"])
def test_a_stamp_that_cannot_be_read_is_none(profiles: Profiles, tmp_path: Path, stamp: str) -> None:
    python = make(tmp_path)
    (python.parent.parent / "complete.json").write_text(stamp)
    assert profiles.state("extra") in ("unfinished", "outdated") and profiles.installed() == {"base"}


def test_the_built_in_ones_can_be_read() -> None:
    profiles = Profiles(BUILT_IN, Path("/nowhere"))
    names = [profile.name for profile in profiles.known()]
    assert {"base", "torch", "cuda", "bfa"} <= set(names) and "dev" not in names
    assert all(profile.licence for profile in profiles.known())
    assert "General Public License" in (profiles.get("bfa").notice or "")
    assert profiles.get("cuda").needs_device == "cuda"
    assert (profiles.get("torch").cpu_size_mb or 0) < profiles.get("torch").size_mb
    with pytest.raises(ProfileNotFoundError, match="there are: base, "):
        profiles.get("nothing")


def test_a_faulty_one_is_named(profiles: Profiles, tmp_path: Path) -> None:
    (tmp_path / "profiles" / "odd.toml").write_text('name = "odd"\nsize_mb = "large"\n')
    with pytest.raises(ConfigError, match=r"odd\.toml.*size_mb"):
        profiles.known()


def test_the_catalogue_says_what_the_profile_lacks(profiles: Profiles, tmp_path: Path) -> None:
    write_fake(tmp_path / "catalogue", more='profile = "extra"')
    catalogue = Catalogue([tmp_path / "catalogue"], profiles=profiles.installed, missing=profiles.reason)
    make(tmp_path, finished_at=None)
    with pytest.raises(
        ModelUnavailableError, match=r"'extra' \(1 MB\) has .* not finished.*python3 launcher\.py install --with extra"
    ):
        catalogue.usable("fake")
    make(tmp_path, "extra-000000000001")
    catalogue.refresh()
    assert catalogue.usable("fake").profile == "extra"


def test_how_large_it_is_is_told_of_the_build_that_would_be_installed(tmp_path: Path) -> None:
    for for_cpu, size in ((True, "1.3 GB"), (False, "5.2 GB")):
        profiles = Profiles(BUILT_IN, tmp_path, for_cpu)
        assert profiles.reason("torch") == f"the profile 'torch' ({size}) is not installed"
        with pytest.raises(ProfileMissingError, match=rf"\({size}\) is not installed \(cure: .*--with torch"):
            profiles.python("torch")
    assert Profiles(BUILT_IN, tmp_path, True).reason("bfa") == Profiles(BUILT_IN, tmp_path).reason("bfa")
    assert Profiles(tmp_path, tmp_path).reason("gone") == "the profile 'gone' is not installed"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no builds for the CPU")
def test_builds_for_the_cpu_are_taken_where_the_launcher_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, wsl = tmp_path / "dev", tmp_path / "wsl"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    assert takes_cpu_builds("auto", devices, wsl)
    (devices / "nvidia0").touch()
    assert not takes_cpu_builds("auto", devices, wsl) and takes_cpu_builds("cpu", devices, wsl)
    assert not takes_cpu_builds("cuda", tmp_path, wsl)
    wsl.mkdir()
    (wsl / "libcuda.so.1").touch()
    (tmp_path / "dxg").touch()
    assert not takes_cpu_builds("auto", tmp_path, wsl)
    wants_cuda = runpy.run_path(str(ROOT / "launcher.py"))["wants_cuda"]
    for device in ("auto", "cpu", "cuda"):
        monkeypatch.setenv("SIDECAR_DEVICE", device)
        assert takes_cpu_builds(device) is not wants_cuda()


def test_the_users_folders_are_read(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, profiles_dir=tmp_path / "profiles")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "extra.lock").write_text(LOCK)
    make(tmp_path)
    assert Profiles.of(settings).installed() == {"base", "extra"}
