"""A prefix of an S3 bucket as the place of a model. boto3 lists and signs, the bytes come as those of the hub do.

There are no commits: what stands for one is a hash of the listing (paths, sizes, ETags), so that a changed file makes
another revision.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from sidecar import __version__
from sidecar.catalogue.origin import TRANSIENT, Interrupted, Origin, Remote
from sidecar.errors import AccessDeniedError, ConfigError, DownloadError, RevisionNotFoundError
from sidecar.settings import Settings

if TYPE_CHECKING:
    import httpx2

_MOST_FILES = 10_000


class Access(NamedTuple):
    """How S3 is reached. Secret; it never leaves the process that downloads."""

    endpoint: str
    region: str
    key_id: SecretStr | None
    secret: SecretStr | None

    @classmethod
    def of(cls, settings: Settings) -> "Access":
        return cls(settings.s3_endpoint, settings.s3_region, settings.s3_access_key_id, settings.s3_secret_access_key)


class S3(Origin):
    """Repositories are `s3://bucket/prefix`; files under `prefix/<model id>/` go before those under `prefix/`."""

    name = "S3"
    setting = "S3_ENDPOINT_URL"

    def __init__(self, model_id: str, access: Access | None) -> None:
        access = access or Access("", "", None, None)
        super().__init__(model_id, access.endpoint or "Amazon S3")
        self._access = access
        self._made: Any = None
        self._credentials: Any = None
        self._base: str | None = None
        self._etags: dict[str, str] = {}

    def resolve(self, repo: str, ref: str) -> tuple[str, list[str]]:
        """The revision, and the paths of all files under the prefix."""
        bucket, base = self._place(repo)
        listing = []
        with self._asking(repo, None):
            for page in self._s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base):
                listing += [(each["Key"][len(base) :], each["Size"], each["ETag"]) for each in page.get("Contents", [])]
                if len(listing) > _MOST_FILES:
                    raise DownloadError(f"model {self.model_id!r}: {repo} has over {_MOST_FILES} files: not one model")
        files = sorted(each for each in listing if each[0] and not each[0].endswith("/"))
        digest = hashlib.sha1(repr(files).encode(), usedforsecurity=False)
        return digest.hexdigest(), [path for path, _, _ in files]

    def metadata(self, repo: str, commit: str, path: str) -> Remote:
        """From the object's headers: its SHA-256 where S3 was given one, else its MD5 where the ETag is that."""
        bucket, base = self._place(repo)
        with self._asking(repo, path):
            head = self._s3().head_object(Bucket=bucket, Key=base + path, ChecksumMode="ENABLED")
        etag = str(head["ETag"])
        self._etags[path] = etag
        checksum = str(head.get("ChecksumSHA256", ""))
        # Of an upload in parts both are hashes of hashes; under a key of its own the ETag is no MD5.
        whole = checksum and "-" not in checksum
        plain = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
        md5 = etag.strip('"')
        return Remote(
            int(head["ContentLength"]),
            base64.b64decode(checksum).hex() if whole else None,
            md5=md5 if plain and re.fullmatch(r"[0-9a-f]{32}", md5) else None,
        )

    @contextmanager
    def open(self, repo: str, commit: str, path: str, offset: int) -> Iterator["httpx2.Response"]:
        """The object must still be the one that `metadata` saw."""
        bucket, base = self._place(repo)
        headers = self._headers | ({"Range": f"bytes={offset}-"} if offset else {})
        if etag := self._etags.get(path):
            headers["If-Match"] = etag
        with self._asking(repo, path):
            url, headers = self._signed(bucket, base + path, headers)
        with (
            self._requesting(repo, commit, path),
            self._client.stream("GET", url, headers=headers, timeout=self.stall_s) as response,
        ):
            if response.status_code != 416:
                self._check(response.status_code, repo, path)
            yield response

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def _signed(self, bucket: str, key: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Address and headers of a GET. Signed in the headers: addresses get into logs, of proxies too."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        client = self._s3()
        address = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}).partition("?")[0]
        if self._credentials is None:
            return address, headers
        request = AWSRequest("GET", address, headers=headers)
        S3SigV4Auth(self._credentials, "s3", client.meta.region_name).add_auth(request)
        return address, dict(request.headers)

    def _place(self, repo: str) -> tuple[str, str]:
        """Bucket, and what the keys of the model's files begin with."""
        bucket, _, prefix = repo.removeprefix("s3://").partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        if self._base is None:
            own = f"{prefix}{self.model_id}/"
            with self._asking(repo, None):
                found = self._s3().list_objects_v2(Bucket=bucket, Prefix=own, MaxKeys=1)
            self._base = own if found.get("KeyCount") else prefix
        return bucket, self._base

    def _s3(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        access = self._access
        if (access.key_id is None) != (access.secret is None):
            raise ConfigError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY go together; one of them is not set")
        session = boto3.session.Session(
            aws_access_key_id=access.key_id.get_secret_value() if access.key_id else None,
            aws_secret_access_key=access.secret.get_secret_value() if access.secret else None,
            region_name=access.region or None,
        )
        self._credentials = session.get_credentials()
        config = Config(
            signature_version="s3v4" if self._credentials else UNSIGNED,
            connect_timeout=self.stall_s,
            read_timeout=self.stall_s,
            retries={"total_max_attempts": 1},  # ours are the ones that a cancel can end
            s3={"addressing_style": "path" if access.endpoint else "auto"},
            user_agent=f"ml-sidecar/{__version__}",
        )
        region = None if session.region_name else "us-east-1"
        return session.client("s3", endpoint_url=access.endpoint or None, config=config, region_name=region)

    @contextmanager
    def _asking(self, repo: str, path: str | None) -> Iterator[None]:
        """boto3's errors as ours; none of them repeats a key."""
        from botocore import exceptions

        if self.offline:
            raise self.unreachable(repo, "offline mode is on (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE")
        try:
            yield
        except exceptions.ClientError as error:
            self._check(int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), repo, path)
            raise DownloadError(f"model {self.model_id!r}: {repo}: {self.endpoint}: {_code(error)}") from None
        except (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyConnectionError):
            raise Interrupted("no connection", unreachable=True) from None
        except exceptions.ReadTimeoutError:
            raise Interrupted(f"nothing arrived for {self.stall_s:g} s") from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise self._refused(repo, "there are no credentials") from None
        except exceptions.HTTPClientError as error:
            raise Interrupted(type(error).__name__) from None
        except (exceptions.BotoCoreError, ValueError) as error:
            raise DownloadError(f"model {self.model_id!r}: {repo}: {type(error).__name__}: {error}") from None

    def _check(self, status: int, repo: str, path: str | None) -> None:
        if 0 < status < 300:
            return
        what = f"model {self.model_id!r}: {repo}" + (f" {path}" if path else "")
        if status in TRANSIENT:
            raise Interrupted(f"HTTP {status}")
        if status in (400, 401, 403):
            raise self._refused(repo, f"HTTP {status}")
        if status == 404:
            missing = "file" if path else "bucket"
            raise RevisionNotFoundError(f"{what}: {self.endpoint} has no such {missing}; correct its place")
        if status == 412:
            raise DownloadError(f"{what}: it has been changed meanwhile; try again")
        raise DownloadError(f"{what}: {self.endpoint} answered HTTP {status}")

    def _refused(self, repo: str, reason: str) -> AccessDeniedError:
        return AccessDeniedError(
            f"model {self.model_id!r}: {repo}: {self.endpoint} refuses access ({reason}); check S3_ACCESS_KEY_ID, "
            "S3_SECRET_ACCESS_KEY, S3_REGION and the bucket's policy"
        )


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", type(error).__name__))
