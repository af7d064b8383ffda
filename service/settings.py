"""Every setting of the service, read from the environment as `FOKKER_<NAME>`.

A `Settings` is built once at start and handed down; nothing reads the environment at import.
"""

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_OTHERS = {"FOKKER_URL", "FOKKER_API_KEY", "FOKKER_TORCH_INDEX"}  # the client's, and a script's
_ALIKE = 0.9  # of two names, from which one is meant for the other


class SettingsError(ValueError):
    """A setting is missing or unusable; the message names its environment variable."""


class Settings(BaseSettings):
    """The settings of API and worker; times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="FOKKER_", frozen=True, extra="forbid")

    redis_url: str | None = Field(
        default=None,
        description="Redis server that holds jobs and hints, e.g. redis://localhost:6379/0.",
    )
    artifacts: str | None = Field(
        default=None,
        description="Where artifacts are kept, if not in Redis: a URL of fsspec, e.g. "
        "file:///srv/fokker or s3://bucket/prefix (with fokker[s3]). The same for the API and "
        "every worker, and of nothing else.",
    )
    models: Path | None = Field(
        default=None, description="Folder of *.safetensors checkpoints; the shipped ones if unset."
    )
    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys as owner:key, separated by commas; `fokker key OWNER` makes one.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of API keys as owner:salt:hash, one a line."
    )
    no_auth: bool = Field(
        default=False, description="Serve other addresses than loopback without API keys."
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Signs URLs; one is made and kept in Redis if unset.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Signs webhooks; without it there are none.",
    )
    webhook_private: bool = Field(
        default=False, description="Let webhooks call private addresses, too."
    )
    signed_ttl: int = Field(default=3600, ge=1, description="Seconds that a signed URL works.")
    cors_origins: str = Field(
        default="",
        description="Origins of web pages that may call the API from a browser, separated by "
        "commas; none if empty.",
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="Port that the API listens on.")
    api_processes: int = Field(
        default=1, ge=1, description="API processes that share the port, and one `/metrics`."
    )
    job_ttl: int = Field(
        default=86_400, ge=1, description="Seconds that a finished job and its artifacts are kept."
    )
    max_count: int = Field(
        default=256, ge=1, description="Images of one request, times the samples drawn of each."
    )
    max_steps: int = Field(default=4000, ge=1, description="Network calls of one image.")
    max_pixels: int = Field(
        default=16_777_216, ge=1, description="Pixels that one uploaded image may declare."
    )
    max_body: int = Field(default=64 * 2**20, ge=1, description="Bytes of one request body.")
    max_wait: float = Field(default=60.0, ge=0, description="Cap of `Prefer: wait=N`, in seconds.")
    lease: float = Field(
        default=15.0,
        gt=0,
        description="Seconds without a sign of life after which a worker loses a job.",
    )
    attempts: int = Field(
        default=2, ge=1, description="Times that a job is started before it fails."
    )
    stream_length: int = Field(default=1000, ge=10, description="Events kept of one job (about).")
    max_previews: int = Field(
        default=64, ge=1, description="Previews kept of one job; the oldest go first."
    )
    preview_bytes: int = Field(
        default=8 * 2**20, ge=1, description="Bytes of previews kept of one job."
    )
    preview_rate: float = Field(
        default=16.0,
        gt=0,
        description="Previews a second that the jobs of a worker share, an equal part for each of "
        "its processes, after the first 16 of each job; those between are left out.",
    )
    max_queued: int = Field(
        default=10_000, ge=1, description="Jobs that may wait; more are answered 503."
    )
    max_owner_cost: int | None = Field(
        default=None,
        ge=1,
        description="Rows × network calls that the jobs of one API key may have unfinished; more "
        "are answered 429. A single job is always taken.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests for jobs that one API key may send in a minute, refused ones too.",
    )
    idempotency_ttl: int = Field(
        default=86_400, ge=1, description="Seconds that an Idempotency-Key is remembered."
    )
    worker_processes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Processes of a worker on a CPU, which share its cores; some 300 MB each, and "
        "more than there are cores gain nothing. If unset, as many as there are cores, but 4 at "
        "most. "
        "With a GPU, or not on Linux, always one.",
    )
    engine_jobs: int | None = Field(
        default=None,
        ge=1,
        description="Jobs that a worker's process runs at once; as many as it has room for if "
        "unset.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the networks, for rows that need neither gradients nor to be reproducible "
        "(samplers other than pf_ode; never encoding or likelihoods).",
    )
    compile: bool = Field(
        default=False,
        description="Compile the networks for the same rows; needs a C++ compiler, takes a minute "
        "and more a model when it is loaded, and on a CPU seven times its weights' memory.",
    )
    model_memory: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of weights that a worker keeps loaded, which its processes divide; half "
        "of its device's memory if unset. On a CPU a U-Net's weights count twice, compiled ones "
        "seven times.",
    )
    cache: Path | None = Field(
        default=None,
        description="Folder of what a worker measured and need not measure again; the user's "
        "cache folder if unset.",
    )
    worker_metrics_host: str = Field(
        default="127.0.0.1", description="Address that a worker's metrics are served on."
    )
    worker_metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port that a worker's metrics are served on; unset, they are not served.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Form of the log lines: for people or for machines."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe log line that is written."
    )

    @classmethod
    def load(cls, **given: Any) -> "Settings":
        """The settings of the environment, `given` first; `SettingsError` names what is wrong.

        A variable that is a setting but for a slip of the pen is wrong, too; others that begin
        with FOKKER_ are let be: Kubernetes makes some for every service of such a name.
        """
        known = {f"FOKKER_{name.upper()}" for name in cls.model_fields}
        for name in sorted(os.environ.keys() - known - _OTHERS):
            if name.startswith("FOKKER_") and (near := get_close_matches(name, known, 1, _ALIKE)):
                raise SettingsError(f"{name} is no setting; {near[0]} is one")
        try:
            return cls(**given)
        except ValidationError as error:
            wrong = [(str(entry["loc"][0]), entry) for entry in error.errors()]
            lines = [
                f"FOKKER_{name.upper()}: {entry['msg']}"
                + ("" if name in cls.secrets() else f", given {entry['input']!r}")
                for name, entry in wrong
            ]
            raise SettingsError("; ".join(lines)) from error

    @classmethod
    def secrets(cls) -> set[str]:
        """The settings whose values no message may hold."""
        fields = cls.model_fields.items()
        return {name for name, field in fields if SecretStr in get_args(field.annotation)}

    def require_redis(self) -> str:
        """The Redis URL; raises `SettingsError` naming the variable if there is none."""
        if not self.redis_url:
            raise SettingsError(
                "FOKKER_REDIS_URL is not set; set it to a Redis server's URL, for example "
                "redis://localhost:6379/0, or run `fokker up`, which starts one"
            )
        if not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise SettingsError(
                "FOKKER_REDIS_URL is not the URL of a Redis server; it begins with redis://, "
                "rediss:// or unix://, for example redis://localhost:6379/0"
            )
        return self.redis_url


def to_markdown() -> str:
    """The page docs/configuration.md: every setting, its default and what it is for."""
    lines = [
        "# Configuration",
        "",
        "Every setting is an environment variable. Times are in seconds, sizes in bytes. A value",
        "that cannot be used, or a name with a slip of the pen, stops the start with an error that",
        "names the variable. This page is written by `python -m service.settings`.",
        "",
        "| variable | default | what it is for |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        lines.append(f"| `FOKKER_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
