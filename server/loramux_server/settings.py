"""What the operator may set: one frozen value, and the only place in the server that reads the environment.

Takes options of a command, the environment and a TOML file, the former before the latter; gives `Settings`. It knows
nothing of what the values do. Secrets are never values here, only the files that hold them.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from loramux_client.settings import VARIABLES as CLIENT_VARIABLES
from loramux_server.errors import BadSetting

BUILTIN = "builtin"
"""Name of the base that ships with the server."""

PREFIX = "LORAMUX_"


def _number(value: object) -> object:
    """Choices among numbers are not read from texts, which all options and variables are."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class Settings(BaseSettings):
    """All settings with their defaults. Each is an option of `loramux serve`, a variable (LORAMUX_ and its name in
    capitals) and a key of the file that `config` names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    config: Path | None = Field(
        default=None, description="TOML file of settings, by these names; options and the environment go before it."
    )
    base: str = Field(
        default=BUILTIN,
        description="Base model, Stable Diffusion 1.x, 2.x or SDXL: 'builtin', a folder in diffusers layout, a "
        ".safetensors checkpoint, or a hub id (owner/name) that is in Hugging Face's cache; nothing is downloaded.",
    )
    store: Path = Field(
        default_factory=lambda: user_data_path("loramux") / "store", description="Folder of the adapter store."
    )
    quota_bytes: int | None = Field(
        default=None, ge=1, description="Most bytes of adapter files the store takes; unset: what the disk holds."
    )
    upload_idle_seconds: float = Field(
        default=86400.0, gt=0, description="An unfinished upload that nobody goes on with is thrown away after these."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=50051, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    metrics_port: int = Field(
        default=9090, ge=0, le=65535, description="HTTP port of /metrics, /livez, /readyz; 0 picks a free one."
    )
    metrics_host: str | None = Field(
        default=None,
        description="Address of HTTP, which has neither encryption nor tokens and tells names of adapters; unset: that "
        "of --host.",
    )
    tls_cert: Path | None = Field(default=None, description="Certificate chain of the gRPC port, PEM; with --tls-key.")
    tls_key: Path | None = Field(default=None, description="Private key of the certificate, PEM.")
    tls_client_ca: Path | None = Field(
        default=None, description="Certificates, PEM, of which one must have signed each client's (mutual TLS)."
    )
    tokens: Path | None = Field(
        default=None,
        description="TOML file of those who may call, made with 'loramux config token'; read again as it changes.",
    )
    insecure: bool = Field(
        default=False, description="Listen beyond this machine although calls are not encrypted or callers not known."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of the base; auto takes a GPU if there is one."
    )
    kernels: Literal["auto", "reference", "triton"] = Field(
        default="auto", description="Adapter arithmetic: auto takes Triton kernels on a GPU, plain torch on the CPU."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of tensor work; unset: torch decides.")
    deterministic: bool = Field(
        default=False,
        description="Pictures do not depend on their company, not even in their last bits; docs/isolation.md has the "
        "cost.",
    )
    deterministic_rank: Annotated[Literal[16, 32, 64, 128, 256, 512], BeforeValidator(_number)] = Field(
        default=128, description="Largest total rank of a blend with --deterministic; every blend costs as much."
    )
    max_rows: int | None = Field(
        default=None,
        ge=2,
        description="Most rows of one UNet forward, of which a guided picture takes two; unset: what fits a GPU's "
        "memory, measured at the start, and 32 on the CPU.",
    )
    max_queue: int = Field(default=256, ge=1, description="Most pictures waiting or running.")
    max_side: int = Field(default=1024, ge=64, description="Largest width and height, in pixels.")
    host_cache_bytes: int = Field(
        default=2 << 30,
        ge=0,
        description="Bytes of host memory for adapters, on their way to the device and put out of it; 0 keeps none.",
    )
    pool_bytes: int = Field(default=2 << 30, ge=1 << 20, description="Bytes of device memory for rank rows.")
    side_bytes: int = Field(
        default=2 << 30,
        ge=0,
        description="Most bytes of device memory for what has no cheap rank rows, such as LoKr, full differences and "
        "magnitudes of DoRA; none is taken before one is used.",
    )
    prompt_cache_bytes: int = Field(
        default=64 << 20, ge=0, description="Bytes of device memory for embeddings of prompts; 0 keeps none."
    )
    cross_attention_cache_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Bytes of device memory for cross-attention keys and values of pictures in flight; 0 keeps none.",
    )
    graphs: int = Field(
        default=32,
        ge=0,
        description="Most UNet forwards kept as CUDA graphs, by size, rows and rank class, which a GPU runs several "
        "times as fast; 0: none. With Triton kernels alone.",
    )
    stall_seconds: float = Field(
        default=120.0, gt=0, description="A forward that takes longer makes the server unready until it ends."
    )
    linger_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds between a stop's first sign, that the server is not ready, and turning requests away: "
        "what balancers take to notice.",
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="Seconds that running requests get at stop.")
    adapter_series: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="Adapters that have series of their own in metrics: as many of those asked for most, and those in "
        "memory; 0: none, not even of those.",
    )
    otel_endpoint: str | None = Field(
        default_factory=lambda: (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or None
        ),
        pattern="^https?://.+",
        description="Where traces go: an OpenTelemetry collector's gRPC address, http://HOST:PORT, or https:// with "
        "TLS; unset: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT, else nowhere.",
    )
    otel_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Part of the traces that is kept, where callers have not decided."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="Least serious lines that are logged; info has a line for every call."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="A JSON object a line, or text for people."
    )
    log_prompts: bool = Field(default=False, description="Log the prompts of requests, which may be private.")

    @property
    def http_host(self) -> str:
        """Where HTTP listens."""
        return self.host if self.metrics_host is None else self.metrics_host

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given, then the environment, then the file."""
        file = init_settings().get("config") or env_settings().get("config")
        from_file = InitSettingsSource(settings_cls, read_file(Path(file)) if file else {})
        return init_settings, env_settings, from_file


def load(**given: object) -> Settings:
    """The settings; `given` are those of a command's options.

    Raises:
        BadSetting: with a line for each setting at fault: where it was set, what was found and expected.
    """
    _refuse_unknown(
        (name for name in os.environ if name.startswith(PREFIX) and name not in CLIENT_VARIABLES),
        [PREFIX + name.upper() for name in Settings.model_fields],
        "the environment",
    )
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise BadSetting("\n".join(_told(problem, given) for problem in error.errors())) from None


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises:
        BadSetting: where it cannot be read, or has a key that is no setting.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"config: {path} cannot be read as TOML: {error}") from None
    _refuse_unknown(values, [name for name in Settings.model_fields if name != "config"], str(path))
    return values


def origin(name: str, given: Mapping[str, object], settings: Settings | None = None) -> str:
    """Where a setting's value is from: an option, a variable, a file or the default."""
    if name in given:
        return option(name)
    if os.environ.get(variable := PREFIX + name.upper()):
        return variable
    file = settings.config if settings is not None else given.get("config") or os.environ.get(f"{PREFIX}CONFIG")
    return f"{name} in {file}" if file and name in read_file(Path(str(file))) else "default"


def option(name: str) -> str:
    """A setting's option of the command line."""
    return f"--{name.replace('_', '-')}"


def _refuse_unknown(found: Iterable[str], known: list[str], where: str) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise BadSetting("\n".join(f"{name} in {where} is no setting{_nearest(name, known)}" for name in unknown))


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else f", expected one of {', '.join(known)}"


def _told(problem: Any, given: Mapping[str, object]) -> str:
    name = str(problem["loc"][0])
    return f"{origin(name, given)}: is {problem['input']!r}; {problem['msg']}"
