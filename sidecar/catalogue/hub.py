"""The hub. huggingface_hub gives endpoint, token and the meaning of its errors; the bytes are ours, because
`hf_hub_download` (2.4) starts over after every interruption of the process, verifies no hash and cannot be cancelled.
"""

import email.utils
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from sidecar.catalogue.origin import TRANSIENT, Interrupted, Origin, Remote
from sidecar.errors import AccessDeniedError, DownloadError, RevisionNotFoundError

if TYPE_CHECKING:
    import httpx2

_RELATIVE_REDIRECTS = 5


class Hub(Origin):
    """Large files have a `sha256` there, small ones a `git_sha1`."""

    name = "the hub"
    setting = "HF_ENDPOINT"

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id)
        from huggingface_hub import constants, get_token

        if not self.endpoint.startswith(("http://", "https://")):
            raise DownloadError(
                f"model {model_id!r}: HF_ENDPOINT is no http:// or https:// address; correct it, or unset it for the "
                "public hub"
            )
        if token := None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token():
            self._headers["Authorization"] = f"Bearer {token}"

    def resolve(self, repo: str, ref: str) -> tuple[str, list[str]]:
        """Commit of a branch or tag, and the paths of all files in it."""
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(ref, safe='')}"
        with self._requesting(repo, ref, None):
            response = self._client.get(url, headers=self._headers, timeout=self.stall_s)
            self._check(response, repo, ref, None)
        try:
            body: dict[str, Any] = json.loads(response.content)
            return str(body["sha"]), [str(item["rfilename"]) for item in body.get("siblings", [])]
        except (ValueError, KeyError, TypeError) as error:
            raise Interrupted(f"the answer to {url} makes no sense: {error!r}") from error

    def metadata(self, repo: str, commit: str, path: str) -> Remote:
        """Size and hashes of a file, from the headers of its address here, not of where it is stored."""
        url = self._url(repo, commit, path)
        with self._requesting(repo, commit, path):
            for _ in range(_RELATIVE_REDIRECTS):
                response = self._client.head(url, headers=self._headers, timeout=self.stall_s, follow_redirects=False)
                location = response.headers.get("Location", "")
                # A relative one is a renamed repository; an absolute one leads to the bytes.
                if not response.is_redirect or urlsplit(location).netloc:
                    break
                url = str(response.url.join(location))
            self._check(response, repo, commit, path)
        return _remote(response)

    @contextmanager
    def open(self, repo: str, commit: str, path: str, offset: int) -> Iterator["httpx2.Response"]:
        """The file's bytes from `offset` on: status 206, or 200 where the server sends it all."""
        headers = self._headers | ({"Range": f"bytes={offset}-"} if offset else {})
        url = self._url(repo, commit, path)
        with (
            self._requesting(repo, commit, path),
            self._client.stream("GET", url, headers=headers, timeout=self.stall_s, follow_redirects=True) as response,
        ):
            if response.status_code != 416:
                self._check(response, repo, commit, path)
            yield response

    def close(self) -> None:
        """The session is everybody's."""

    def _url(self, repo: str, commit: str, path: str) -> str:
        return f"{self.endpoint}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"

    def _check(self, response: "httpx2.Response", repo: str, revision: str, path: str | None) -> None:
        status = response.status_code
        if status < 400:
            return
        what = f"model {self.model_id!r}: {repo}@{revision[:12]}" + (f" {path}" if path else "")
        if status in TRANSIENT:
            raise Interrupted(f"HTTP {status}", retry_after_s=_retry_after_s(response))
        code = response.headers.get("X-Error-Code", "")
        if status in (401, 403) or code == "GatedRepo":
            raise AccessDeniedError(
                f"{what}: {self.endpoint} refuses access (HTTP {status}); accept the conditions on the model's page "
                "and set HF_TOKEN; a repository that does not exist is answered in the same way"
            )
        if status in (404, 410):
            missing = {"RepoNotFound": "repository", "EntryNotFound": "file"}.get(code, "revision or file")
            missing = "revision" if code == "RevisionNotFound" else missing
            raise RevisionNotFoundError(
                f"{what}: {self.endpoint} has no such {missing}; correct `source` in the model's TOML, or update the "
                "catalogue"
            )
        raise DownloadError(f"{what}: {self.endpoint} answered HTTP {status}")


def _remote(response: "httpx2.Response") -> Remote:
    headers = response.headers
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    size = headers.get("X-Linked-Size") or (None if response.is_redirect else headers.get("Content-Length"))
    return Remote(
        int(size) if size and size.isdigit() else None,
        etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None,
        etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None,
    )


def _retry_after_s(response: "httpx2.Response") -> float | None:
    """Seconds of a Retry-After header in either of its forms (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
