"""What a catalogue entry is: the schema of `models/catalogue/*.toml`, and what of it is never accepted."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Runtime = Literal[
    "bfa",
    "cadence",
    "ctranslate2",
    "espeak",
    "fake",
    "fish",
    "kokoro",
    "llama",
    "onnx",
    "parler",
    "piper",
    "pocketsphinx",
    "prosody",
    "silero",
    "torch",
]
# Those with an adapter (sidecar/runner/adapters); an entry of another runtime is known and never picked.
ADAPTED: frozenset[str] = frozenset({"fake", "onnx"})

NOWHERE = Path("not-downloaded")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEVICE_NAMES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_PICKLE_SUFFIXES = frozenset([".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"])


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one commit, and so one content for ever."""
    return bool(revision and _COMMIT.fullmatch(revision))


def safe_path(path: str) -> str:
    """`path` if it is relative, stays in its folder, and names a file on every system. Raises ValueError."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is no path inside the model's folder")
    for part in parts:
        if re.search(r'[\\:*?"<>|\x00-\x1f]', part) or part.endswith((".", " ")):
            raise ValueError(f"{path!r} has a character that file names cannot have everywhere")
        if part.split(".")[0].lower() in _DEVICE_NAMES:
            raise ValueError(f"{path!r} has the name of a Windows device")
    if path.endswith(".part"):
        raise ValueError(f"{path!r}: .part is for unfinished downloads")
    return path


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFile(_Strict):
    """A file of the model, relative to its folder; size in bytes, sha256 in hex. Unknown ones are None."""

    path: Annotated[str, AfterValidator(safe_path)]
    size: int | None = Field(None, ge=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    pickle: bool = Field(False, description="a pickle: fetched only after the user allows this very file")


class Source(_Strict):
    """Where a model comes from: a repository of the hub, or a folder or single file of this computer."""

    repo: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
    revision: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$",
        description="commit; a branch or tag, or nothing, is resolved at the first download and then locked",
    )
    include: tuple[str, ...] = Field((), description="patterns of files beyond those that `files` names")
    path: Path | None = Field(None, description="folder or file of this computer, relative to the TOML")

    @model_validator(mode="after")
    def _one_of(self) -> "Source":
        if (self.repo is None) == (self.path is None):
            raise ValueError("a source is either `repo` or `path`")
        if self.path is not None and (self.revision or self.include):
            raise ValueError("`revision` and `include` belong to a `repo`")
        return self


class Head(_Strict):
    """One classification head: the graph's output and its labels in logit order."""

    output: str
    labels: tuple[str, ...]
    inputs: dict[str, bool] = Field({}, description="switches of the graph, such as branches this head does not need")


class BatchLimits(_Strict):
    """How much one batch may hold, and how long it may take."""

    max_items: int = Field(32, ge=1)
    max_padded_tokens: int = Field(2048, ge=1, description="items × longest item, in tokens")
    max_padding: float = Field(1.0, ge=0, le=1, description="share of the padded tokens that may be padding")
    timeout_s: float = Field(30.0, gt=0, description="silence after which a running batch counts as hung (s)")


class ModelSpec(_Strict):
    """One catalogue entry."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    title: str
    capabilities: tuple[str, ...] = Field(min_length=1)
    runtime: Runtime
    licence: str
    opt_in: str | None = Field(None, description="why the user has to agree to the licence before the download")
    profile: str = "base"
    preference: int = Field(0, description="the usable model with the highest one answers")
    languages: tuple[str, ...] = Field((), description="BCP 47 tags; none where it does not matter")
    memory_mb: int = Field(0, ge=0, description="estimate of the runner's resident memory (MiB)")
    memory_limit_mb: int = Field(0, ge=0, description="RSS at which its runner is ended (MiB); 0 takes the setting")
    pinned: bool = Field(False, description="never evicted to make room")
    replicas: int = Field(1, ge=1, description="runners that share the requests, each with a copy of the model")
    group: str | None = Field(None, description="models of one group load and leave together")
    smaller: str | None = Field(None, description="id of the variant to take after an out-of-memory death")
    source: Source | None = None
    folder: Path = Field(NOWHERE, description="where the files lie, relative to the TOML; a hub model's in the cache")
    files: tuple[ModelFile, ...] = ()
    threads: int = Field(
        0, ge=0, description="threads of one batch; the other cores compute further batches beside it. 0: all on one"
    )
    window: int = Field(512, ge=8, description="longest input (tokens); longer ones are truncated")
    heads: dict[str, Head] = {}
    batch: BatchLimits = BatchLimits()
    options: dict[str, Any] = Field({}, description="for the runtime's adapter alone")

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSpec":
        if self.is_hub and self.source is not None and not (self.files or self.source.include):
            raise ValueError("a hub model names its `files`, or patterns in `source.include`")
        if len({file.path.lower() for file in self.files}) != len(self.files):
            raise ValueError("a file is named twice (case does not count)")
        for file in self.files:
            if self.is_hub and not file.pickle and looks_like_pickle(file.path, self.runtime):
                raise ValueError(f"{file.path!r} may be a pickle: say `pickle = true`, the user is then asked")
        return self

    @property
    def is_hub(self) -> bool:
        """Whether its files are downloaded."""
        return self.source is not None and self.source.repo is not None

    def missing_files(self) -> list[str]:
        """Files of the entry that are not on disk."""
        return [file.path for file in self.files if not (self.folder / file.path).is_file()]


def looks_like_pickle(path: str, runtime: str) -> bool:
    """Judged by the name alone. CTranslate2's own format is a `model.bin`, without any Python in it."""
    if runtime == "ctranslate2" and path.rsplit("/", 1)[-1] == "model.bin":
        return False
    return any(path.lower().endswith(suffix) for suffix in _PICKLE_SUFFIXES)
