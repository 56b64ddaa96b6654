"""Cache, lock file and garbage."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.catalogue.cache import PART, ModelCache
from sidecar.catalogue.downloader import download
from sidecar.catalogue.lockfile import Entry, Lockfile
from sidecar.catalogue.permission import is_pickle
from sidecar.catalogue.retry import delay_s
from sidecar.catalogue.spec import ModelFile, Source, looks_like_pickle
from sidecar.errors import BadRequestError, ConfigError, DownloadCancelledError
from tests.catalogue.conftest import make_spec

COMMIT = "a" * 40


def place(cache: ModelCache, path: str, size: int = 10) -> Path:
    file = cache.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    return file


def test_the_state_is_what_lies_on_disk(cache: ModelCache) -> None:
    spec = make_spec("acme/tiny", revision=COMMIT, files=[{"path": "a", "size": 10}, {"path": "b"}])
    assert cache.state(spec) == "absent" and cache.missing(spec) == ["a", "b"]
    part = place(cache, f"tiny/{COMMIT}/a{PART}")
    assert cache.state(spec) == "partial"
    part.unlink()
    place(cache, f"tiny/{COMMIT}/a", 9)
    place(cache, f"tiny/{COMMIT}/b")
    assert cache.state(spec) == "partial" and cache.missing(spec) == ["a"], "a wrong size is not there"
    place(cache, f"tiny/{COMMIT}/a")
    assert cache.state(spec) == "complete" and cache.size_bytes(spec) is None


def test_a_model_that_was_never_resolved_has_no_folder(cache: ModelCache) -> None:
    spec = make_spec("acme/tiny", "a")
    assert cache.revision(spec) is None and not cache.folder(spec).exists()
    assert cache.placed(spec).missing_files() == ["a"]


def test_an_entry_of_another_source_does_not_count(cache: ModelCache) -> None:
    cache.lockfile.record("tiny", Entry(repo="acme/old", revision=COMMIT, files=(ModelFile(path="a"),)))
    assert cache.revision(make_spec("acme/tiny", "a")) is None
    assert cache.revision(make_spec("acme/old", "a")) == COMMIT
    assert cache.revision(make_spec("acme/old", "a", revision="v2")) is None


def test_the_lock_cannot_loosen_the_catalogue(cache: ModelCache) -> None:
    cache.lockfile.record(
        "tiny", Entry(repo="acme/tiny", revision=COMMIT, files=(ModelFile(path="a", size=7, sha256="1" * 64),))
    )
    (file,) = cache.files(make_spec("acme/tiny", files=[{"path": "a", "sha256": "0" * 64}]))
    assert (file.size, file.sha256) == (7, "0" * 64)


def test_a_damaged_lock_stops_downloads_and_nothing_else(cache: ModelCache) -> None:
    spec = make_spec("acme/tiny", "a", revision=COMMIT)
    cache.lockfile.path.parent.mkdir(parents=True)
    cache.lockfile.path.write_text("{")
    assert cache.state(spec) == "absent"
    with pytest.raises(ConfigError, match=r"models\.lock\.json is damaged"):
        download(spec, cache)


def test_writers_in_many_threads_lose_nothing(cache: ModelCache) -> None:
    def write(number: int) -> None:
        Lockfile(cache.lockfile.path).agree(f"model{number}", licence=True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(cache.lockfile.path.read_text())["consents"]) == 12
    assert not list(cache.lockfile.path.parent.glob("*.tmp"))


def test_garbage_is_what_nothing_refers_to(cache: ModelCache) -> None:
    spec = make_spec("acme/tiny", "a", "b", revision=COMMIT)
    kept = [place(cache, f"tiny/{COMMIT}/a"), place(cache, f"tiny/{COMMIT}/b{PART}")]
    old = place(cache, f"tiny/{'b' * 40}/a")
    stray = place(cache, f"tiny/{COMMIT}/a{PART}")
    gone = place(cache, f"forgotten/{COMMIT}/a")
    busy = place(cache, f"busy/{COMMIT}/a")
    with cache.exclusive("busy"):
        garbage = cache.collect([spec])
    assert garbage.size_bytes == 30 and len(garbage.paths) == 3
    assert all(path.exists() for path in [*kept, busy])
    assert not any(path.exists() for path in (old, stray, gone))
    fortnight = time.time() - 15 * 86400
    os.utime(kept[1], (fortnight, fortnight))
    cache.collect([spec])
    assert not kept[1].exists(), "nobody goes on with a part that old"


def test_weights_of_an_entry_that_cannot_be_read_now_are_no_garbage(cache: ModelCache) -> None:
    typo = place(cache, f"typo/{COMMIT}/a")
    unset = place(cache, f"own/{COMMIT}/a")
    elsewhere = place(cache, f"elsewhere/{COMMIT}/a")
    own = make_spec("acme/tiny", "a", id="own").model_copy(update={"source": Source(setting="SIDECAR_X")})
    assert cache.collect([own], {"typo", None}).paths == []
    assert all(path.exists() for path in (typo, unset, elsewhere))
    assert [path.name for path in cache.collect([own], {"typo"}).paths] == ["elsewhere"]
    assert typo.exists() and unset.exists()


def test_what_came_with_the_product_is_verified_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ModelCache(tmp_path / "file" / "models", Lockfile(tmp_path / "lock.json"))
    (tmp_path / "a").write_bytes(b"x")
    spec = make_spec("acme/tiny", files=[{"path": "a", "sha256": "0" * 64}])
    spec = spec.model_copy(update={"source": None, "folder": tmp_path})
    [fault] = cache.verify(spec)
    assert "content has changed" in fault and (tmp_path / "a").exists()


def test_one_at_a_time_and_whoever_waits_can_leave(cache: ModelCache) -> None:
    cancel, asked = threading.Event(), []

    def waiting() -> None:
        asked.append(1)
        cancel.set()

    refused = pytest.raises(DownloadCancelledError, match="'tiny'")
    with cache.exclusive("tiny"), refused, cache.exclusive("tiny", cancel, waiting):
        pass
    assert asked == [1]


def test_what_was_not_downloaded_is_not_removed(cache: ModelCache, tmp_path: Path) -> None:
    spec = make_spec("acme/tiny", "a").model_copy(update={"source": None, "folder": tmp_path})
    with pytest.raises(BadRequestError, match="was not downloaded"):
        cache.remove(spec)


@pytest.mark.parametrize(
    ("name", "runtime", "verdict"),
    [
        ("pytorch_model.bin", "torch", True),
        ("voices/a.PT", "kokoro", True),
        ("voices/af_heart.bin", "kokoro", False),
        ("voices/af_heart.bin", "torch", True),
        ("model.bin", "kokoro", True),
        ("model.bin", "ctranslate2", False),
        ("other.bin", "ctranslate2", True),
        ("model.safetensors", "torch", False),
        ("model.gguf", "llama", False),
    ],
)
def test_pickles_are_known_by_name(name: str, runtime: str, verdict: bool) -> None:
    assert looks_like_pickle(name, runtime) == verdict


def test_ctranslate2s_own_format_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(bytes([6, 0, 0, 0, 11, 0]) + b"WhisperSpec")
    assert not is_pickle(tmp_path / "model.bin")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    assert not is_pickle(tmp_path / "broken.zip")


@pytest.mark.parametrize(
    ("failures", "retry_after_s", "jitter", "expected"),
    [(1, None, 1.0, 0.5), (1, None, 0.0, 0.25), (4, None, 1.0, 4.0), (40, None, 1.0, 30.0), (1, 7.0, 1.0, 7.0)],
)
def test_pauses_grow_and_the_server_may_ask_for_longer_ones(
    failures: int, retry_after_s: float | None, jitter: float, expected: float
) -> None:
    assert delay_s(failures, retry_after_s, jitter) == expected


def test_a_removed_model_comes_back_from_the_lock(cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    spec = make_spec("acme/tiny", "model.onnx")
    folder = download(spec, cache)
    assert cache.remove(spec) == 300_000 and not folder.exists()
    assert download(spec, cache) == folder
