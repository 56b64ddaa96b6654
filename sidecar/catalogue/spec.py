"""What a catalogue entry is: the schema of `models/catalogue/*.toml`, and what of it is never accepted."""

import re
import string
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Runtime = Literal[
    "alignment",
    "bfa",
    "cadence",
    "ctranslate2",
    "espeak",
    "fake",
    "ffmpeg",
    "fish",
    "keywords",
    "kokoro",
    "llama",
    "onnx",
    "parler",
    "piper",
    "pocketsphinx",
    "prosody",
    "silero",
    "torch",
    "transformers-lm",
    "transformers-nla",
    "wav2vec2",
    "wav2vec2-amd",
]
# What an entry may offer; for those without a file in sidecar/capabilities, models are known and wait.
CAPABILITIES = frozenset(
    [
        "align",
        "amd",
        "analysis",
        "analysis_ar",
        "analysis_av",
        "asr",
        "backchannel",
        "chat",
        "classify",
        "embeddings",
        "emotion",
        "speech_emotion",
        "tts",
        "vad",
    ]
)
# What the sidecar asks of processes of its own, and no entry may offer.
INTERNAL = frozenset(["decode"])
# Those with an adapter (sidecar/runner/adapters); an entry of another runtime is known and never picked.
ADAPTED: frozenset[str] = frozenset(
    [
        "alignment",
        "bfa",
        "ctranslate2",
        "espeak",
        "fake",
        "ffmpeg",
        "keywords",
        "kokoro",
        "onnx",
        "parler",
        "piper",
        "pocketsphinx",
        "prosody",
        "silero",
        "torch",
        "wav2vec2",
    ]
)

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
    """Where a model comes from: the hub, S3, a folder or file of this computer, or what of these a setting names."""

    repo: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
    revision: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$",
        description="commit; a branch or tag, or nothing, is resolved at the first download and then locked",
    )
    include: tuple[str, ...] = Field((), description="patterns of files beyond those that `files` names")
    s3: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f]*)?$",
        description="s3://bucket/prefix; files under prefix/<id of the model>/ go before those under prefix/",
    )
    path: Path | None = Field(None, description="folder or file of this computer, relative to the TOML")
    setting: str | None = Field(None, description="environment variable that says where: folder, hub id or s3://…")

    @model_validator(mode="after")
    def _one_of(self) -> "Source":
        if [self.repo, self.s3, self.path, self.setting].count(None) != 3:
            raise ValueError("a source is one of `repo`, `s3`, `path` and `setting`")
        if self.path is not None and self.include:
            raise ValueError("`include` is for files that are downloaded; name those of a `path` in `files`")
        if self.revision and self.repo is None:
            raise ValueError("`revision` belongs to a `repo`")
        return self

    @property
    def origin(self) -> str | None:
        """What it is downloaded from: the hub's id or the s3:// address; None for what lies here."""
        return self.repo or self.s3


_FIELDS = frozenset(["text", "text_pair"])


def _only_known_fields(template: str | tuple[str, str] | None) -> str | tuple[str, str] | None:
    for segment in (template,) if isinstance(template, str) else template or ():
        for _, field, form, conversion in string.Formatter().parse(segment):
            if field is not None and (field not in _FIELDS or form or conversion):
                raise ValueError(f"{segment!r}: a template has {{text}} and {{text_pair}}, nothing else in braces")
    return template


Template = Annotated[str | tuple[str, str] | None, AfterValidator(_only_known_fields)]
Text = str | tuple[str, str]


class Head(_Strict):
    """One output of a text model: what it wants to read, and what its numbers mean."""

    output: str = "logits"
    labels: tuple[str, ...] = Field((), description="in logit order; none takes those of the model's config.json")
    inputs: dict[str, bool] = Field({}, description="switches of the graph, such as branches this head does not need")
    template: Template = Field(
        None, description="one text of {text} and {text_pair}, or a list of two segments; none passes them as they are"
    )
    template_alone: Template = Field(None, description="the same where the first text of a pair is empty")
    lower: bool = Field(False, description="lower-case what is read")
    multi_label: bool | None = Field(
        None, description="labels do not exclude each other; none takes the config.json's `problem_type`"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="a label counts above it; none is 0.5 where several may hold"
    )
    pooling: Literal["none", "mean", "cls"] | None = Field(
        None, description="an embedding: how token vectors become one; `none` where the graph has done it"
    )

    def compose(self, texts: Sequence[str | Sequence[str]]) -> list[Text]:
        """What the tokenizer gets: one segment or two for each text, or pair of texts."""
        return [self._composed(text) for text in texts]

    def _composed(self, text: str | Sequence[str]) -> Text:
        first, second = (text, "") if isinstance(text, str) else text
        if self.lower:
            first, second = first.lower(), second.lower()
        alone = not first and self.template_alone is not None
        template = self.template_alone if alone else self.template
        if template is None:
            return first if isinstance(text, str) else (first, second)
        if isinstance(template, str):
            return template.format(text=first, text_pair=second)
        one, other = (segment.format(text=first, text_pair=second) for segment in template)
        return one, other


class BatchLimits(_Strict):
    """How much one batch may hold, and how long it may take."""

    max_items: int = Field(32, ge=1)
    max_padded_tokens: int = Field(2048, ge=1, description="items × longest item, in tokens")
    max_padding: float = Field(1.0, ge=0, le=1, description="share of the padded tokens that may be padding")
    timeout_s: float = Field(30.0, gt=0, description="silence after which a running batch counts as hung (s)")
    max_streams: int = Field(4, ge=1, description="streams that advance side by side in one runner")


def _all_known(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    for name in capabilities:
        if name not in CAPABILITIES | INTERNAL:
            raise ValueError(f"{name!r} is none of {', '.join(sorted(CAPABILITIES))}")
    return capabilities


class ModelSpec(_Strict):
    """One catalogue entry."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    title: str
    capabilities: Annotated[tuple[str, ...], AfterValidator(_all_known)] = Field(min_length=1)
    runtime: Runtime
    licence: str
    opt_in: str | None = Field(None, description="why the user has to agree to the licence before the download")
    profile: str = "base"
    preference: int = Field(0, description="the usable model with the highest one answers")
    languages: tuple[str, ...] = Field((), description="BCP 47 tags; none where it does not matter")
    download_mb: int = Field(0, ge=0, description="about how much is fetched (MB); 0 where all sizes are known")
    memory_mb: int = Field(0, ge=0, description="estimate of the runner's resident memory (MiB)")
    memory_limit_mb: int = Field(0, ge=0, description="RSS at which its runner is ended (MiB); 0 takes the setting")
    pinned: bool = Field(False, description="never evicted to make room")
    replicas: int = Field(1, ge=1, description="runners that share the requests, each with a copy of the model")
    group: str | None = Field(None, description="models of one group load and leave together")
    smaller: str | None = Field(None, description="id of the variant to take after an out-of-memory death")
    source: Source | None = None
    made_from: str | None = Field(None, description="id of the model that `models optimise` made this one from")
    folder: Path = Field(NOWHERE, description="where the files lie, relative to the TOML; a hub model's in the cache")
    files: tuple[ModelFile, ...] = ()
    threads: int = Field(
        0, ge=0, description="threads of one batch; the other cores compute further batches beside it. 0: all on one"
    )
    device: Literal["auto", "cpu"] = Field("auto", description='"cpu" for what a GPU computes no faster')
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
        """Whether its files are downloaded, from the hub or from S3."""
        return self.source is not None and self.source.origin is not None

    @property
    def graph(self) -> str | None:
        """Its ONNX graph, relative to `folder`."""
        return next((file.path for file in self.files if file.path.endswith(".onnx")), None)

    def matching(self, paths: Iterable[str]) -> list[str]:
        """Of these, the files that `source.include` adds to `files`."""
        patterns = self.source.include if self.source else ()
        named = {file.path for file in self.files}
        return [path for path in paths if path not in named and any(fnmatchcase(path, one) for one in patterns)]

    def missing_files(self) -> list[str]:
        """Files of the entry that are not on disk."""
        return [file.path for file in self.files if not (self.folder / file.path).is_file()]


def looks_like_pickle(path: str, runtime: str) -> bool:
    """Judged by the name alone. CTranslate2's own format is a `model.bin`, Kokoro's voices are bare numbers."""
    if runtime == "ctranslate2" and path.rsplit("/", 1)[-1] == "model.bin":
        return False
    if runtime == "kokoro" and re.fullmatch(r"voices/\w+\.bin", path):
        return False
    return any(path.lower().endswith(suffix) for suffix in _PICKLE_SUFFIXES)
