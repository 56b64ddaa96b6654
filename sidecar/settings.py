"""Settings: every one declared once, with default, unit, meaning and environment name.

This module is the only reader of `os.environ`. The README's table is generated from `Settings` (`settings_table`).
"""

import math
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sidecar.bounds import LONGEST_S, MOST_BYTES, Delay, fitting, parse_duration_s, shortened
from sidecar.errors import ConfigError

APP_NAME = "ml-sidecar"
INSTANCE = "sidecar"
ROOT = Path(__file__).resolve().parent.parent

DESKTOP_ORIGINS = ("tauri://localhost", "http://tauri.localhost", "https://tauri.localhost")

Numbers = Annotated[tuple[Delay, ...], NoDecode]
Words = Annotated[tuple[str, ...], NoDecode]


def _env(*names: str, default: Any, text: str, **limits: Any) -> Any:
    if isinstance(default, float):
        limits = {"le": LONGEST_S, "allow_inf_nan": False, **limits}
    elif type(default) is int:
        limits = {"le": MOST_BYTES, **limits}
    return Field(default, validation_alias=AliasChoices(*names), description=text, **limits)


class Settings(BaseSettings):
    """All settings, frozen once read. Command-line flags arrive as overrides of `load`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    home: Path | None = _env(
        "SIDECAR_HOME", default=None, text="Folder that holds everything (environments, weights, logs, run files)"
    )
    host: str = _env("SIDECAR_HOST", default="127.0.0.1", text="Loopback address to listen on")
    port: int = _env("SIDECAR_PORT", default=0, text="Port; 0 takes a free one", ge=0, le=65535)
    auth: Literal["on", "off"] = _env(
        "SIDECAR_AUTH", default="on", text="`off` serves legacy local clients without a token (no browser origin)"
    )
    allowed_origins: Words = _env(
        "ALLOWED_ORIGINS",
        default=(),
        text="More exact browser origins, comma-separated (`app://…`, `http://localhost:5173`)",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _env("LOG_LEVEL", default="INFO", text="Log level")
    log_max_bytes: int = _env(
        "SIDECAR_LOG_MAX_BYTES", default=5_000_000, text="Size at which a log file is rotated (bytes)", ge=10_000
    )
    log_files: int = _env("SIDECAR_LOG_FILES", default=5, text="Rotated log files kept", ge=1, le=10_000)

    catalogue_dir: Path | None = _env(
        "SIDECAR_CATALOGUE", default=None, text="Folder of additional model TOML files, read after the built-in ones"
    )
    profiles_dir: Path | None = _env(
        "SIDECAR_PROFILES", default=None, text="Folder of profiles (TOML and lock each) in place of the built-in ones"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = _env(
        "SIDECAR_DEVICE",
        default="auto",
        text="Where models run; `auto` takes a GPU that works, and what cannot be used falls back to the CPU",
    )
    threads: int = _env(
        "SIDECAR_THREADS", default=0, text="Threads per runner; 0 sizes them from the usable cores", ge=0, le=1024
    )
    queue_size: int = _env(
        "SIDECAR_QUEUE_SIZE",
        default=512,
        text="Requests that may wait for one model; past it 503 with Retry-After",
        ge=1,
        le=1_000_000,
    )
    rate_limit_per_minute: int = _env(
        "RATE_LIMIT_PER_MINUTE",
        default=0,
        text="Requests a minute of one client; past it 429 with Retry-After. 0 sets no limit",
        ge=0,
    )
    request_timeout_s: float = _env(
        "REQUEST_TIMEOUT", default=300.0, text="Longest a request may take, queueing included (s)", gt=0
    )
    max_body_bytes: int = _env(
        "SIDECAR_MAX_BODY_BYTES", default=2_000_000, text="Largest body of a JSON request (bytes)", ge=1024
    )
    max_audio_bytes: int = _env(
        "SIDECAR_MAX_AUDIO_BYTES",
        default=256_000_000,
        text="Largest body of a request that brings audio (bytes)",
        ge=1024,
    )
    # Its upper bound: 16 kHz float32 of this length fills one frame to a runner (wire.MAX_FRAME_BYTES).
    max_audio_s: float = _env(
        "SIDECAR_MAX_AUDIO_S", default=3600.0, text="Longest audio of one request (s)", gt=0, le=4000
    )
    audio_folders: str = _env(
        "SIDECAR_AUDIO_FOLDERS",
        default="",
        text="Folders whose files requests may name (`audio_path`), separated like PATH or by commas; "
        "empty: the user's temporary folder and the sidecar's data folder",
    )
    runner_ready_timeout_s: float = _env(
        "SIDECAR_RUNNER_READY_TIMEOUT",
        default=60.0,
        text="Longest silence of a loading runner (s); progress extends it",
        gt=0,
    )
    preload: Words = _env(
        "SIDECAR_PRELOAD",
        default=("emotion",),
        text="Capabilities whose model is loaded at the start; the others load at their first request",
    )
    keep_alive: str = _env(
        "SIDECAR_KEEP_ALIVE",
        default="5m",
        text='How long an idle model stays in memory: "5m", seconds, 0, or -1 for ever',
    )
    memory_budget_bytes: int = _env(
        "SIDECAR_MEMORY_BUDGET",
        default=0,
        text="Memory of all models together (bytes); 0 is 60 % of the computer's",
        ge=0,
    )
    vram_budget_bytes: int = _env(
        "SIDECAR_VRAM_BUDGET",
        default=0,
        text="GPU memory of all models together (bytes); 0 is 90 % of the first GPU's",
        ge=0,
    )
    runner_memory_limit_bytes: int = _env(
        "SIDECAR_RUNNER_MEMORY_LIMIT",
        default=0,
        text="RSS at which a runner is ended (bytes); 0 is 85 % of the memory",
        ge=0,
    )

    backchannel_model: str = _env(
        "SIDECAR_BACKCHANNEL_MODEL",
        default="",
        text="Your own backchannel model (`distilbert-onnx`, `distilbert`): a folder, a hub id, or s3://bucket/prefix",
    )
    s3_bucket: str = _env("S3_BUCKET_NAME", default="", text="S3 bucket of the backchannel model")
    s3_prefix: str = _env("S3_MODEL_PREFIX", default="", text="Prefix of its files there")
    s3_region: str = _env("S3_REGION", default="", text="Region of the bucket")
    s3_endpoint: str = _env("S3_ENDPOINT_URL", default="", text="Address of an S3 that is not Amazon's", repr=False)
    s3_access_key_id: SecretStr | None = _env(
        "S3_ACCESS_KEY_ID", default=None, text="Access key; without it that of the AWS profile, or none"
    )
    s3_secret_access_key: SecretStr | None = _env("S3_SECRET_ACCESS_KEY", default=None, text="Its secret")
    model_threshold: float = _env(
        "MODEL_THRESHOLD",
        default=0.5,
        text="Probability above which an utterance counts as a backchannel, at start",
        ge=0,
        le=1,
    )
    max_batch_size: int = _env(
        "MAX_BATCH_SIZE", default=32, text="Utterances that one batch of backchannel predictions may hold", ge=1
    )

    restart_delays_s: Numbers = _env(
        "SIDECAR_RESTART_DELAYS",
        default=(0.0, 1.0, 5.0, 15.0),
        text="Delays before the 1st, 2nd, … restart of the server (s)",
    )
    restart_limit: int = _env(
        "SIDECAR_RESTART_LIMIT", default=5, text="Server crashes within the window that end in phase `failed`", ge=1
    )
    restart_window_s: float = _env(
        "SIDECAR_RESTART_WINDOW", default=600.0, text="Window of the restart limit (s)", gt=0
    )
    restart_reset_s: float = _env(
        "SIDECAR_RESTART_RESET", default=60.0, text="Healthy time that clears the count (s)", gt=0
    )
    probe_interval_s: float = _env("SIDECAR_PROBE_INTERVAL", default=5.0, text="Time between hang probes (s)", gt=0)
    probe_misses: int = _env(
        "SIDECAR_PROBE_MISSES", default=3, text="Missed probes after which the server is killed", ge=1
    )
    startup_grace_s: float = _env(
        "SIDECAR_STARTUP_GRACE", default=30.0, text="Time a server has to answer at first (s)", gt=0
    )
    drain_s: float = _env("SIDECAR_DRAIN", default=5.0, text="Time running requests get at shutdown (s)", ge=0)
    term_s: float = _env("SIDECAR_TERM", default=5.0, text="Time between SIGTERM and SIGKILL at shutdown (s)", ge=0)

    @field_validator("home", "catalogue_dir", "profiles_dir", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return value or None  # empty is not set, for the launcher too; Path("") would be the current folder

    @field_validator("allowed_origins", "preload", "restart_delays_s", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _exact(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin in ("*", "null") or "://" not in origin or origin.endswith("/"):
                raise ValueError(f"{origin!r} is no exact origin such as app://my-app or http://localhost:5173")
        return value

    @field_validator("host")
    @classmethod
    def _loopback(cls, value: str) -> str:
        if value not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"{value!r} is no loopback address; the sidecar serves this computer only")
        return value

    @field_validator("keep_alive")
    @classmethod
    def _duration(cls, value: str) -> str:
        try:
            if math.isinf(parse_duration_s(value)):
                raise ValueError
        except ValueError:
            raise ValueError('write seconds, "5m", 0 or -1') from None
        return value

    @field_validator("audio_folders")
    @classmethod
    def _absolute(cls, value: str) -> str:
        for folder in _split_folders(value):
            if not Path(folder).expanduser().is_absolute():
                raise ValueError(f"{folder!r} is no absolute path")
        return value

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """Read the environment; `overrides` that are None are ignored. Raises ConfigError naming the setting."""
        try:
            # By alias: with populate_by_name the library would also read HOME and PORT from the environment.
            return cls(**{environment_names(key)[0]: value for key, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(cls, item) for item in error.errors())) from None

    # Folders. The launcher, which imports nothing of ours, computes the same data folder; a test compares them.

    @cached_property
    def data_dir(self) -> Path:
        """Environments and whatever must outlive a reboot."""
        return self.home.expanduser().absolute() if self.home else platformdirs.user_data_path(APP_NAME, False)

    @cached_property
    def cache_dir(self) -> Path:
        """Weights and other things that can be fetched or made again."""
        return self.data_dir / "cache" if self.home else platformdirs.user_cache_path(APP_NAME, False)

    @cached_property
    def backchannel_place(self) -> str:
        """Where the user's own backchannel model is; "" where there is none."""
        if self.backchannel_model or not self.s3_bucket:
            return self.backchannel_model
        return f"s3://{self.s3_bucket}/{self.s3_prefix.strip('/')}".rstrip("/")

    @cached_property
    def log_dir(self) -> Path:
        return self.data_dir / "logs" if self.home else platformdirs.user_log_path(APP_NAME, False)

    @cached_property
    def run_dir(self) -> Path:
        """Handshake and lock. `XDG_RUNTIME_DIR` is used where it exists: it is private and cleared at logout."""
        if self.home is None and sys.platform == "linux" and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
            if os.path.isdir(runtime) and os.access(runtime, os.W_OK):
                return Path(runtime) / APP_NAME
        return self.data_dir / "run"

    @cached_property
    def handshake_path(self) -> Path:
        return self.run_dir / f"{INSTANCE}.json"

    @cached_property
    def lock_path(self) -> Path:
        return self.run_dir / f"{INSTANCE}.lock"

    @cached_property
    def audio_dirs(self) -> tuple[Path, ...]:
        """Where the files of requests may lie."""
        named = tuple(Path(folder).expanduser() for folder in _split_folders(self.audio_folders))
        return named or (Path(tempfile.gettempdir()), self.data_dir)

    def as_environment(self) -> dict[str, str]:
        """What a child needs to see the same settings: the inherited environment plus the overrides of this process."""
        env = dict(os.environ)
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else _plain(value)
                env[environment_names(name)[0]] = text
        return env


def _split_folders(value: str) -> list[str]:
    separator = os.pathsep if os.pathsep in value else ","
    return [part.strip() for part in value.split(separator) if part.strip()]


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _explain(cls: type[BaseModel], item: Mapping[str, Any]) -> str:
    location = str(item["loc"][0]) if item["loc"] else ""
    takes = ""
    for name, field in cls.model_fields.items():
        if location == name or location in environment_names(name):
            location = environment_names(name)[0]
            takes = fitting(field)
    shown = shortened(item.get("input"))
    return f"setting {location}={shown}: {item['msg'].removeprefix('Value error, ')}{takes}"


def environment_names(field: str) -> list[str]:
    """Environment variables that set `field`, preferred one first."""
    alias = Settings.model_fields[field].validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [field]


def settings_table() -> str:
    """The README's table (Markdown)."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = (
            "" if default in (None, ()) else ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        )
        rows.append(f"| {', '.join(f'`{env}`' for env in environment_names(name))} | {shown} | {field.description} |")
    return "\n".join(rows)


class Launch(BaseModel):
    """What the supervisor tells this one server process, through its environment. Not settings: never set by people."""

    model_config = ConfigDict(frozen=True)

    token: str | None = None
    instance_id: str = "unsupervised"
    socket_fd: int | None = None
    restart_count: int = 0

    @classmethod
    def take(cls) -> "Launch":
        """Read and delete, so that no child inherits the token."""
        values = {name: os.environ.pop(f"SIDECAR_LAUNCH_{name.upper()}", None) for name in cls.model_fields}
        return cls(**{name: value for name, value in values.items() if value is not None})


# A runner gets what an ML library needs to work and nothing else: no token, no credentials of the host app.
_RUNNER_ENV = frozenset(
    """PATH HOME LANG LC_ALL LC_CTYPE TZ TMPDIR TEMP TMP SYSTEMROOT SYSTEMDRIVE WINDIR USERPROFILE LOCALAPPDATA APPDATA
    COMSPEC NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE CUDA_VISIBLE_DEVICES PYTHONPATH PYTHONUTF8 XDG_CACHE_HOME
    XDG_DATA_HOME XDG_RUNTIME_DIR""".split()  # noqa: SIM905 (one name a line would be 26 lines)
)


def runner_environment() -> dict[str, str]:
    """The environment of a runner process."""
    inherited = {key: value for key, value in os.environ.items() if key.upper() in _RUNNER_ENV}
    return inherited | {
        "PYTHONPATH": str(ROOT),  # the interpreter may be a profile's, in whose environment we are not installed
        # Its thread pool would compete with the batches computed beside, for texts too short to gain from it.
        "TOKENIZERS_PARALLELISM": "false",
        # OpenMP's threads (torch) spin while they wait, by default. On a busy computer they then wait for each other:
        # measured 5 to 15 times slower, and nothing gained on an idle one.
        "OMP_WAIT_POLICY": "PASSIVE",
        # A runner has its files; a library that looks for newer ones would tell the network what is used here.
        "HF_HUB_OFFLINE": "1",
    }


def role_command(*role: str, python: Path | None = None) -> list[str]:
    """argv of another process of ours, run by `python` if given; frozen, the executable itself takes the role."""
    if python is None and getattr(sys, "frozen", False):
        return [sys.executable, *role]
    return [str(python or sys.executable), "-m", "sidecar", *role]


if __name__ == "__main__":
    print(settings_table())
