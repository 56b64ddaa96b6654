"""Models from a bucket, through the real download code, against a real local S3 server."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from sidecar.catalogue.cache import ModelCache
from sidecar.catalogue.downloader import download
from sidecar.catalogue.lockfile import Lockfile
from sidecar.catalogue.s3 import Access
from sidecar.catalogue.spec import ModelSpec
from sidecar.errors import AccessDeniedError, ConfigError, HashMismatchError, OfflineError, RevisionNotFoundError
from tests.catalogue.bucket import KEY_ID, REGION, SECRET, Bucket, Line, running_bucket
from tests.catalogue.conftest import random_bytes

WEIGHTS = random_bytes(3_000_000)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setattr("sidecar.catalogue.retry._FIRST_S", 0.01)
    with running_bucket() as running:
        running.put("models/model.onnx", WEIGHTS)
        running.put("models/config.json", b"{}")
        running.put("models/notes.txt", b"not asked for")
        yield running
        close_session()


@pytest.fixture
def line(bucket: Bucket) -> Iterator[Line]:
    running = Line(bucket.url)
    yield running
    running.close()


def access(endpoint: str, key_id: str | None = KEY_ID, secret: str | None = SECRET) -> Access:
    return Access(
        endpoint, REGION, None if key_id is None else SecretStr(key_id), None if secret is None else SecretStr(secret)
    )


def cache_of(folder: Path, reached: Access) -> ModelCache:
    return ModelCache(folder / "cache" / "models", Lockfile(folder / "models.lock.json"), reached)


def make_spec(place: str = "s3://bucket/models", include: tuple[str, ...] = (), *files: Any, **more: Any) -> ModelSpec:
    values = {"id": "tiny", "title": "t", "capabilities": ["emotion"], "runtime": "onnx", "licence": "MIT"}
    values |= {"files": list(files) or [{"path": "model.onnx"}, {"path": "config.json"}]}
    return ModelSpec.model_validate({**values, "source": {"s3": place, "include": include}, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_named_files_arrive_and_are_locked(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    folder = download(make_spec(), cache)
    assert contents(folder) == {"model.onnx": WEIGHTS, "config.json": b"{}"}
    entry = cache.lockfile.entry(make_spec())
    assert entry is not None and entry.repo == "s3://bucket/models"
    assert {file.path: file.sha256 for file in entry.files}["model.onnx"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert cache.state(make_spec()) == "complete"
    text = (tmp_path / "models.lock.json").read_text(encoding="utf-8")
    assert KEY_ID not in text and SECRET not in text and "X-Amz" not in text


def test_patterns_choose_files(bucket: Bucket, tmp_path: Path) -> None:
    spec = make_spec("s3://bucket/models", ("model.onnx", "onnx/model.onnx"), {"path": "config.json"})
    assert set(contents(download(spec, cache_of(tmp_path, access(bucket.url))))) == {"model.onnx", "config.json"}


@pytest.mark.parametrize("place", ["s3://bucket/models", "s3://bucket/models/", "s3://bucket"])
def test_a_folder_of_the_models_name_goes_first(bucket: Bucket, tmp_path: Path, place: str) -> None:
    prefix = "models/" if "models" in place else ""
    bucket.put(f"{prefix}tiny/model.onnx", b"its own")
    bucket.put(f"{prefix}tiny/config.json", b"{}")
    folder = download(make_spec(place), cache_of(tmp_path, access(bucket.url)))
    assert contents(folder)["model.onnx"] == b"its own"


def test_a_cut_line_is_gone_on_with(bucket: Bucket, line: Line, tmp_path: Path) -> None:
    line.cuts = [1_000_000, 700_000]
    folder = download(make_spec(), cache_of(tmp_path, access(line.url)))
    assert contents(folder)["model.onnx"] == WEIGHTS and line.cuts == []
    assert line.forwarded < len(WEIGHTS) + 200_000, "what had arrived was not fetched again"


def test_a_part_of_an_earlier_process_is_gone_on_with(bucket: Bucket, line: Line, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(line.url))
    revision = download(make_spec(), cache_of(tmp_path / "other", access(bucket.url))).name
    part = cache.root / "tiny" / revision / "model.onnx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:2_000_000])
    assert contents(download(make_spec(), cache))["model.onnx"] == WEIGHTS
    assert line.forwarded < 1_200_000


def test_a_wrong_part_is_found_by_the_etag(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    revision = download(make_spec(), cache_of(tmp_path / "other", access(bucket.url))).name
    part = cache.root / "tiny" / revision / "model.onnx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1_000_000)
    assert contents(download(make_spec(), cache))["model.onnx"] == WEIGHTS


def test_a_given_sha256_is_compared_before_anything_is_fetched(bucket: Bucket, line: Line, tmp_path: Path) -> None:
    digest = base64.b64encode(hashlib.sha256(WEIGHTS).digest()).decode()
    bucket.put("models/model.onnx", WEIGHTS, ChecksumAlgorithm="SHA256", ChecksumSHA256=digest)
    cache = cache_of(tmp_path, access(line.url))
    wrong = make_spec("s3://bucket/models", (), {"path": "model.onnx", "sha256": "0" * 64})
    with pytest.raises(HashMismatchError, match="S3 says sha256"):
        download(wrong, cache)
    assert line.forwarded < 20_000
    right = {"path": "model.onnx", "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    download(make_spec("s3://bucket/models", (), right), cache)


def test_content_that_is_not_what_the_catalogue_says_is_thrown_away(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    spec = make_spec("s3://bucket/models", (), {"path": "model.onnx", "size": len(WEIGHTS), "sha256": "0" * 64})
    with pytest.raises(HashMismatchError, match="sha256 is"):
        download(spec, cache)
    assert cache.state(spec) == "absent"


def test_a_changed_file_is_another_revision_only_when_asked_for(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    first = download(make_spec(), cache)
    bucket.put("models/model.onnx", b"new weights")
    assert download(make_spec(), cache) == first
    second = download(make_spec(), cache, update=True)
    assert second != first and contents(second)["model.onnx"] == b"new weights"


def test_a_locked_file_that_changed_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    folder = download(make_spec(), cache)
    (folder / "model.onnx").unlink()
    bucket.put("models/model.onnx", random_bytes(len(WEIGHTS), seed=2))
    with pytest.raises(HashMismatchError):
        download(make_spec(), cache)


def test_what_is_missing_is_named(bucket: Bucket, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, access(bucket.url))
    with pytest.raises(RevisionNotFoundError, match=r"absent\.onnx: .* has no such file"):
        download(make_spec("s3://bucket/models", (), {"path": "absent.onnx"}), cache)
    with pytest.raises(RevisionNotFoundError, match="no file like"):
        download(make_spec("s3://bucket/models", ("*.gguf",), {"path": "config.json"}), cache)
    with pytest.raises(RevisionNotFoundError, match="has no such bucket"):
        download(make_spec("s3://no-such-bucket/models"), cache)


def test_nobody_is_there(tmp_path: Path, bucket: Bucket, line: Line) -> None:
    line.close()
    with pytest.raises(OfflineError, match="S3_ENDPOINT_URL"):
        download(make_spec(), cache_of(tmp_path, access(line.url)))


def test_half_of_the_keys_is_no_key(tmp_path: Path, bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match="go together"):
        download(make_spec(), cache_of(tmp_path, access(bucket.url, secret=None)))


def test_refused_access_names_the_settings_and_no_key(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with bucket.checked_signatures() as (key_id, secret):
        download(make_spec(), cache_of(tmp_path / "right", access(bucket.url, key_id, secret)))
        for wrong in (access(bucket.url, key_id, SECRET), access(bucket.url, KEY_ID, SECRET)):
            with pytest.raises(AccessDeniedError, match="S3_ACCESS_KEY_ID") as caught:
                download(make_spec(), cache_of(tmp_path / "wrong", wrong))
            assert key_id not in caught.value.message and SECRET not in caught.value.message
    assert "httpx2" in caplog.text, "what the client library says is looked at"
    for name in (key_id, secret, KEY_ID, SECRET, "Signature"):
        assert name not in caplog.text


@pytest.mark.parametrize("place", ["s3://", "s3://B/x", "http://bucket/x", "s3://bucket\x00", "s3://../x"])
def test_what_is_no_address_of_a_bucket(place: str) -> None:
    with pytest.raises(ValidationError):
        make_spec(place)
