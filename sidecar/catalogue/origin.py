"""Where files come from, over HTTP: what the hub and S3 have in common.

huggingface_hub gives session (proxies, OS trust store), time-out and offline mode; the bytes are ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sidecar import __version__
from sidecar.errors import DownloadError, OfflineError

if TYPE_CHECKING:
    import httpx2

TRANSIENT = frozenset([408, 429, 500, 502, 503, 504])


class Remote(NamedTuple):
    """What is known of a file before it is fetched. `git_sha1` is that of git's header and the content."""

    size: int | None
    sha256: str | None
    git_sha1: str | None = None
    md5: str | None = None


class Interrupted(Exception):
    """A failure after which the same request makes sense again."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.unreachable = unreachable


class Origin(ABC):
    """Asked for one model. Raises DownloadError and its children, and Interrupted for what may pass."""

    name: ClassVar[str]
    setting: ClassVar[str]
    """The environment variable that says where it is."""

    def __init__(self, model_id: str, endpoint: str | None = None) -> None:
        # Imported here: the server shall start without it.
        import httpx2
        from huggingface_hub import constants, get_session

        self.model_id = model_id
        self.endpoint = endpoint or str(constants.ENDPOINT)
        self.offline = constants.is_offline_mode()
        # Longest silence (s), from HF_HUB_DOWNLOAD_TIMEOUT.
        self.stall_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._httpx = httpx2
        try:
            self._client = get_session()
        except (ValueError, ImportError) as error:  # of a proxy that the client library does not know
            raise DownloadError(
                f"model {model_id!r}: no connection can be made: {error}; correct HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            ) from None
        # Not build_hf_headers: its user agent tells what is installed here.
        self._headers = {"User-Agent": f"ml-sidecar/{__version__}", "Accept-Encoding": "identity"}

    @abstractmethod
    def resolve(self, repo: str, ref: str) -> tuple[str, list[str]]:
        """Commit (40 hex digits) of a branch or tag, and the paths of all files in it."""

    @abstractmethod
    def metadata(self, repo: str, commit: str, path: str) -> Remote:
        """Size and hashes of a file."""

    @abstractmethod
    def open(self, repo: str, commit: str, path: str, offset: int) -> AbstractContextManager["httpx2.Response"]:
        """The file's bytes from `offset` on: status 206, or 200 where the server sends it all, or 416."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections that are ours alone."""

    @contextmanager
    def _requesting(self, repo: str, revision: str, path: str | None) -> Iterator[None]:
        from huggingface_hub.errors import OfflineModeIsEnabled

        if self.offline:
            raise self.unreachable(repo, "offline mode is on (HF_HUB_OFFLINE)", "unset HF_HUB_OFFLINE")
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise self.unreachable(repo, str(error).splitlines()[0], "unset HF_HUB_OFFLINE") from None
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.ProxyError) as error:
            raise Interrupted(f"no connection: {error}", unreachable=True) from error
        except self._httpx.TimeoutException as error:
            raise Interrupted(f"nothing arrived for {self.stall_s:g} s") from error
        except self._httpx.TransportError as error:
            raise Interrupted(f"{type(error).__name__}: {error}") from error
        except self._httpx.StreamError as error:
            raise Interrupted(f"the connection was closed: {error}") from error

    def unreachable(self, repo: str, reason: str, cure: str) -> OfflineError:
        """The error for one that cannot be asked."""
        return OfflineError(
            f"model {self.model_id!r}: {repo}: {self.endpoint} cannot be asked: {reason}; {cure}, or bring the "
            "model from another computer (`models export`, `models import`)"
        )
