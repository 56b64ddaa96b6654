"""Downloads against a hub that misbehaves."""

import hashlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.catalogue.cache import PART, ModelCache
from sidecar.catalogue.downloader import DownloadProgress, download
from sidecar.errors import (
    AccessDeniedError,
    DownloadCancelledError,
    DownloadError,
    HashMismatchError,
    LicenceRequiredError,
    OfflineError,
    PickleRefusedError,
    RevisionNotFoundError,
    SidecarError,
)
from tests.catalogue.conftest import make_spec, random_bytes
from tests.hub import Fault, Hub
from tests.product import until

BIG = random_bytes(300_000)
SHA256 = hashlib.sha256(BIG).hexdigest()
PATHS = ("model.onnx", "config.json", "vocab/a.txt")


def parts(cache: ModelCache) -> list[Path]:
    return list(cache.root.rglob("*" + PART))


def test_a_model_arrives_whole_and_is_written_to_the_lock(
    hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    commit = publish()
    spec = make_spec("acme/tiny", *PATHS)
    assert cache.state(spec) == "absent"
    folder = download(spec, cache)
    assert folder == cache.folder(spec) == cache.root / "tiny" / commit
    assert (folder / "model.onnx").read_bytes() == BIG
    assert (folder / "vocab" / "a.txt").stat().st_size == 5000
    assert cache.state(spec) == "complete" and not parts(cache)
    entry = cache.lockfile.read().models["tiny"]
    assert entry.revision == commit
    assert {file.path: file.sha256 for file in entry.files}["model.onnx"] == SHA256
    asked = len(hub.asked)
    assert download(spec, cache) == folder
    assert len(hub.asked) == asked, "a whole model asks nobody"


def test_a_pinned_and_known_file_costs_one_request(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    commit = publish()
    files = [{"path": "model.onnx", "size": len(BIG), "sha256": SHA256}]
    download(make_spec("acme/tiny", revision=commit, files=files), cache)
    assert [asked.path for asked in hub.asked] == [
        f"/acme/tiny/resolve/{commit}/model.onnx",
        f"/lfs/acme/tiny@{commit}/model.onnx",
    ]


FAULTS = {
    "cut": [Fault("cut", 100_000)],
    "cut at once": [Fault("cut", 0)],
    "cut again and again": [Fault("cut", 20_000)] * 9,
    "stalled": [Fault("stall", 100_000, 5.0)],
    "no answer": [Fault("silent", 0, 5.0)],
    "truncated": [Fault("truncate", 100_000)],
    "announced longer": [Fault("longer")],
    "500, 503, 429": [Fault("status", status=code) for code in (500, 503, 429)],
    "corrupt once": [Fault("corrupt", 100_000)],
    "resume answered with all": [Fault("cut", 100_000), Fault("no_range")],
    "resume answered wrongly": [Fault("cut", 100_000), Fault("wrong_range")],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_fault_on_the_way_is_overcome(
    faults: list[Fault], hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    publish()
    hub.faults = list(faults)
    folder = download(make_spec("acme/tiny", "model.onnx"), cache)
    assert (folder / "model.onnx").read_bytes() == BIG
    assert not hub.faults and not parts(cache)
    if faults[0].kind in ("cut", "stall", "truncate") and len({fault.kind for fault in faults}) == 1:
        assert hub.total_sent() == len(BIG), "no byte was fetched twice"


def test_retry_after_is_obeyed(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    hub.faults = [Fault("status", status=429, seconds=1)]
    began = time.monotonic()
    download(make_spec("acme/tiny", "model.onnx"), cache)
    assert time.monotonic() - began >= 1.0


def test_a_server_that_sends_the_same_again_for_ever_ends_with_an_error(
    hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    publish()
    # Ranges ignored and always cut at the same place: bytes come, the file does not.
    hub.choose = lambda _: Fault("again", 100_000)
    with pytest.raises(DownloadError, match=r"'tiny': .*6 times in a row.*models pull tiny"):
        download(make_spec("acme/tiny", "model.onnx"), cache)
    assert cache.state(make_spec("acme/tiny", "model.onnx")) == "absent"  # its commit is not locked yet
    assert [path.stat().st_size for path in parts(cache)] == [100_000]


def test_a_wrong_hash_is_an_error_and_leaves_nothing(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    commit = publish()
    hub.choose = lambda _: Fault("corrupt", 5)
    spec = make_spec("acme/tiny", "model.onnx", revision=commit)
    with pytest.raises(HashMismatchError, match=r"'tiny'.*model.onnx.*sha256 is .*, expected .*HF_ENDPOINT") as caught:
        download(spec, cache)
    assert caught.value.code == "hash_mismatch" and not caught.value.retryable
    assert cache.state(spec) == "absent" and not parts(cache)
    assert "tiny" not in cache.lockfile.read().models


def test_small_files_are_checked_by_gits_hash(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    hub.choose = lambda _: Fault("corrupt", 3)
    with pytest.raises(HashMismatchError, match=r"config.json.*git's sha1"):
        download(make_spec("acme/tiny", "config.json"), cache)


@pytest.mark.parametrize("field", ["size", "sha256"])
def test_a_hub_that_contradicts_the_catalogue_sends_nothing(
    field: str, hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    commit = publish()
    value = {"size": 7} if field == "size" else {"sha256": "0" * 64}
    spec = make_spec("acme/tiny", revision=commit, files=[{"path": "model.onnx", **value}])
    with pytest.raises(HashMismatchError, match=f"the hub says {field}"):
        download(spec, cache)
    assert hub.total_sent() == 0


def test_what_was_trusted_once_is_held_to(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    first = publish()
    spec = make_spec("acme/tiny", "model.onnx")
    download(spec, cache)
    second = publish(model_onnx=random_bytes(200_000, 2))
    cache.remove(spec)
    assert cache.state(spec) == "absent"
    assert download(spec, cache).name == first, "the lock, not what main is now"
    assert download(spec, cache, update=True).name == second
    assert cache.state(spec) == "complete"
    # Every byte is fetched with a hash from the lock: no HEAD is needed, and none is believed.
    garbage = cache.collect([spec])
    assert [path.name for path in garbage.paths] == [first] and garbage.size_bytes == len(BIG)


def test_patterns_choose_files_once(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    spec = make_spec("acme/tiny", include=["*.json", "vocab/*"])
    assert cache.state(spec) == "absent" and cache.size_bytes(spec) is None
    folder = download(spec, cache)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["config.json", "vocab/a.txt"]
    assert cache.state(spec) == "complete" and cache.size_bytes(spec) == 5008
    assert [file.path for file in cache.placed(spec).files] == ["config.json", "vocab/a.txt"]


@pytest.mark.parametrize("path", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "c:evil.json", "con.json"])
def test_paths_from_the_hub_stay_in_the_folder(path: str, hub: Hub, cache: ModelCache) -> None:
    hub.add("acme/evil", {path: b"x"})
    with pytest.raises(DownloadError, match=r"'tiny'.*refused"):
        download(make_spec("acme/evil", include=["*.json"]), cache)
    assert not [item for item in cache.root.rglob("*.json")]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"revision": "0" * 40}, "no such revision"),
        ({"revision": "v9"}, "no such revision"),
        ({"files": [{"path": "other.onnx"}]}, "no such file"),
        ({"include": ["*.nothing"], "files": []}, "no file like"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    values: dict[str, object], named: str, hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    publish()
    with pytest.raises(RevisionNotFoundError, match=rf"'tiny'.*acme/tiny.*{named}") as caught:
        download(make_spec("acme/tiny", "model.onnx", **values), cache)
    assert caught.value.code == "revision_not_found"


def test_another_commit_than_the_pinned_one_is_refused(
    hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    pinned = publish()
    other = publish(model_onnx=random_bytes(1000, 2), config_json=b"{}")
    spec = make_spec("acme/tiny", "model.onnx", revision=pinned, include=["*.json"])
    hub.repos[f"acme/tiny@{pinned}"] = hub.repos[f"acme/tiny@{other}"]
    with pytest.raises(HashMismatchError, match=f"'tiny': asked for acme/tiny@{pinned}.*{other}.*HF_ENDPOINT"):
        download(spec, cache)
    assert hub.total_sent() == 0


def test_the_token_goes_to_the_hub_and_not_to_where_the_bytes_are(
    hub: Hub, cache: ModelCache, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    hub.token = "hf_secret"
    spec = make_spec("acme/tiny", "model.onnx")
    with pytest.raises(AccessDeniedError, match=r"'tiny'.*HF_TOKEN"):
        download(spec, cache)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.asked.clear()
    download(spec, cache)
    assert {bool(asked.authorization) for asked in hub.asked if asked.path.startswith("/lfs")} == {False}
    assert {asked.authorization for asked in hub.asked if "/resolve/" in asked.path} == {"Bearer hf_secret"}


def test_offline_is_said_with_the_cure(cache: ModelCache, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    spec = make_spec("acme/tiny", "model.onnx")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match=r"'tiny'.*127.0.0.1:9.*no connection.*models import"):
        download(spec, cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match=r"'tiny'.*HF_HUB_OFFLINE"):
        download(spec, cache)


def test_licence_and_pickles_wait_for_the_user(hub: Hub, cache: ModelCache) -> None:
    hub.add("acme/tiny", {"weights.bin": BIG})
    files = [{"path": "weights.bin", "pickle": True}]
    spec = make_spec("acme/tiny", files=files, runtime="torch", opt_in="for research only")
    with pytest.raises(LicenceRequiredError, match=r"research only.*models pull tiny --accept-licence"):
        download(spec, cache)
    cache.lockfile.agree("tiny", licence=True)
    with pytest.raises(PickleRefusedError, match=r"models pull tiny --allow-pickle weights.bin"):
        download(spec, cache)
    cache.lockfile.agree("tiny", pickles=("other.bin",))
    with pytest.raises(PickleRefusedError):
        download(spec, cache)
    assert hub.asked == []
    cache.lockfile.agree("tiny", pickles=("weights.bin",))
    assert download(spec, cache).is_dir()


def test_a_pickle_under_another_name_is_refused(hub: Hub, cache: ModelCache, tmp_path: Path) -> None:
    import pickle
    import zipfile

    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    for content in (pickle.dumps({"a": list(range(1000))}), (tmp_path / "zip").read_bytes() + b""):
        hub.add("acme/tiny", {"model.onnx": content})
        spec = make_spec("acme/tiny", "model.onnx")
        with pytest.raises(PickleRefusedError, match=r"--allow-pickle model\.onnx"):
            download(spec, cache)
        assert cache.state(spec) == "absent"


def cancel_after(hub: Hub, cache: ModelCache, ready: Callable[[], bool]) -> float:
    """Cancel a download once something is so; returns the seconds that it took to end."""
    cancel, ended = threading.Event(), []

    def run() -> None:
        try:
            download(make_spec("acme/tiny", "model.onnx"), cache, None, cancel)
        except SidecarError as error:
            ended.append((error, time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    until(ready, "the download to get where it is cancelled")
    began = time.monotonic()
    cancel.set()
    thread.join(30)
    assert isinstance(ended[0][0], DownloadCancelledError)
    return float(ended[0][1] - began)


@pytest.mark.parametrize("kind", ["stall", "silent"])
def test_cancel_does_not_wait_for_a_silent_server(
    kind: str, hub: Hub, cache: ModelCache, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    publish()
    hub.faults = [Fault(kind, 100_000, 20.0)]  # type: ignore[arg-type]
    if kind == "silent":
        assert cancel_after(hub, cache, lambda: not hub.faults) < 5.0
        return
    assert cancel_after(hub, cache, lambda: [p for p in parts(cache) if p.stat().st_size == 100_000]) < 5.0
    sent = hub.total_sent()
    assert download(make_spec("acme/tiny", "model.onnx"), cache).is_dir()
    assert hub.total_sent() == len(BIG) >= sent, "it went on where it was cancelled"


def test_progress_adds_up_and_is_sparing(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    hub.bytes_per_s = 300_000
    seen: list[tuple[float, DownloadProgress]] = []
    download(make_spec("acme/tiny", *PATHS), cache, lambda now: seen.append((time.monotonic(), now)))
    loading = [now for _, now in seen if now.state == "downloading"]
    took_s = seen[-1][0] - seen[0][0]
    assert 2 <= len(loading) <= took_s / 0.24 + 3
    assert [now.done for now in loading] == sorted(now.done for now in loading)
    assert loading[-1].done == loading[-1].total == len(BIG) + 5008
    rate = loading[-1].total / took_s
    assert rate / 3 < loading[-2].rate < rate * 3
    assert loading[-2].eta_s is not None and loading[-2].eta_s < 5 * took_s
    pauses = [later[0] - sooner[0] for sooner, later in itertools.pairwise(seen[1:-1])]
    assert all(pause >= 0.24 for pause in pauses)


def test_many_who_ask_share_one_download(hub: Hub, cache: ModelCache, publish: Callable[..., str]) -> None:
    publish()
    hub.bytes_per_s = 600_000
    folders: list[Path] = []
    spec = make_spec("acme/tiny", "model.onnx")
    threads = [threading.Thread(target=lambda: folders.append(download(spec, cache))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(folders) == 8 and len(set(folders)) == 1
    assert hub.total_sent() == len(BIG)


def test_files_come_in_parallel_but_not_all_at_once(hub: Hub, cache: ModelCache) -> None:
    names = [f"part{number}.safetensors" for number in range(8)]
    hub.add("acme/tiny", {name: random_bytes(20_000, number) for number, name in enumerate(names)})
    hub.bytes_per_s = 20_000
    running, most, lock = set(), [0], threading.Lock()

    def watch() -> None:
        while not done.is_set():
            with lock:
                running.clear()
                running.update(parts(cache))
                most[0] = max(most[0], len(running))
            done.wait(0.005)

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    download(make_spec("acme/tiny", *names), cache)
    took = time.monotonic() - began
    done.set()
    watcher.join()
    assert 2 <= most[0] <= 3
    assert took < 8 * 1.0


def test_a_part_of_a_dead_process_is_verified_before_it_is_continued(
    hub: Hub, cache: ModelCache, publish: Callable[..., str]
) -> None:
    commit = publish()
    folder = cache.root / "tiny" / commit
    folder.mkdir(parents=True)
    (folder / f"model.onnx{PART}").write_bytes(b"\0" * 100_000)
    assert (download(make_spec("acme/tiny", "model.onnx"), cache) / "model.onnx").read_bytes() == BIG
    assert hub.total_sent() == 200_000 + len(BIG)


def test_importing_the_downloader_loads_no_hub_client() -> None:
    code = "import sys, sidecar.catalogue.cli; print('huggingface_hub' in sys.modules, 'httpx2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
