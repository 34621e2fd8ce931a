"""Settings: every one with its unit in its name, its default, what is allowed and its meaning.

This is the one table of them; `settings_load` fills it, `settings_page` prints it. Binding to anything but
loopback is refused, since there are no keys yet.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from billing.budget import Budget

ENV_PREFIX = "TOLLBOOK_"
MIB = 1 << 20

Port = Annotated[int, Field(ge=0, le=65_535)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/tollbook`, or `~/.local/share/tollbook`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tollbook"


def is_loopback(host: str) -> bool:
    """Whether an address or name stays on this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split_text(value: object) -> object:
    """The environment's way to write a list: commas between."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_split_text)]


class Section(BaseModel):
    """Base of the sections: no unknown keys, no values in messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Server(Section):
    """Where tollbook listens and keeps its files."""

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="folder of the journal, the ledger and the published usage.duckdb",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; loopback only")
    http_port: Port = Field(default=4318, description="OTLP/HTTP and API port; 0 takes any free one")
    grpc_port: Port = Field(default=4317, description="OTLP/gRPC port; 0 takes any free one")
    allowed_hosts: Names = Field(
        default_factory=list,
        description="names besides loopback ones that a request's Host header may have",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is written to stderr"
    )

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError(
                "must be a loopback address (127.0.0.1, ::1 or localhost): tollbook has no keys yet, "
                "so whoever reaches it may read everything"
            )
        return host


class LimitSettings(Section):
    """What the receivers accept and hold at most."""

    max_body_bytes: Positive = Field(
        default=64 * MIB, description="one export request, before and after decompression"
    )
    max_backlog_bytes: Positive = Field(
        default=1024 * MIB, description="acknowledged telemetry not yet in the ledger; beyond it senders wait"
    )
    max_held_bytes: Positive = Field(
        default=256 * MIB, description="request bodies in memory, arriving or unwritten"
    )
    max_concurrent_rpcs: Positive = Field(default=4096, description="gRPC calls at the same time")
    retry_after_s: Positive = Field(default=2, description="how long a refused sender is told to wait")


class LedgerSettings(Section):
    """How the ledger loads and publishes."""

    batch_bytes: Positive = Field(
        default=16 * MIB, description="telemetry loaded in one transaction, at most"
    )
    gather_s: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="wait for more telemetry before loading a batch"
    )
    memory_bytes: Positive = Field(default=192 * MIB, description="memory that DuckDB may use in the ledger")
    threads: Positive = Field(default=1, description="threads that DuckDB may use in the ledger")
    publish_interval_s: Seconds = Field(default=0.5, description="shortest time between two publications")


class SqlSettings(Section):
    """What a query may use; the API's own queries obey it too."""

    timeout_s: Seconds = Field(default=10.0, description="a query that runs longer is ended")
    max_rows: Positive = Field(
        default=10_000, description="rows in an answer; more are left out, and that is said"
    )
    memory_bytes: Positive = Field(default=512 * MIB, description="memory that one query may use")
    max_reply_bytes: Positive = Field(default=64 * MIB, description="size of one answer")
    queue_length: Positive = Field(default=32, description="queries that may wait for their turn")


class Retention(Section):
    """How long evidence is kept. Calls and sums are kept for good."""

    observation_days: Positive = Field(default=90, description="telemetry records kept as evidence of calls")
    link_hours: Positive = Field(
        default=24, description="parent links of spans, for calls told in several requests"
    )


class CatalogSettings(Section):
    """What you know besides the shipped catalogue (docs/catalogue.md, docs/plans.md)."""

    overlay: Path | None = Field(
        default=None, description="your prices: a TOML file, or a folder of them, over the shipped ones"
    )
    accounts: Path | None = Field(
        default=None,
        description="your accounts: a TOML file that says which calls are under which plan since when, with "
        "seats, fees and sizes of windows",
    )


class ProxySettings(Section):
    """Live calls: how long a provider may take, and how much may be on its way."""

    connect_timeout_s: Seconds = Field(default=10.0, description="wait for a connection to a provider")
    first_byte_timeout_s: Seconds = Field(
        default=600.0, description="wait for a provider's answer to begin; long answers think first"
    )
    idle_timeout_s: Seconds = Field(default=300.0, description="silence in the middle of an answer")
    total_timeout_s: Seconds = Field(default=3600.0, description="one answer from beginning to end")
    max_request_bytes: Positive = Field(default=64 * MIB, description="one request, images included")
    max_answer_bytes: Positive = Field(default=64 * MIB, description="one answer that is not streamed")
    max_in_flight_calls: Positive = Field(
        default=1024, description="calls on their way at the same time; more are told to come again"
    )
    drain_s: Seconds = Field(default=30.0, description="how long a stop waits for answers on their way")


class Billing(Section):
    """What unknowns are worth."""

    assume_unknown_access: bool = Field(
        default=True,
        description="count calls of unknown access as billed at list price (shown apart as assumed)",
    )


class Attribution(Section):
    """Attributes that tell whose call it is, first match wins, after `tollbook.*`."""

    team: Names = Field(
        default=["team.id", "team", "department", "cost_center"], description="attributes naming a team"
    )
    project: Names = Field(default=["service.namespace"], description="attributes naming a project")
    environment: Names = Field(
        default=["deployment.environment.name"], description="attributes naming an environment"
    )


class Settings(BaseSettings):
    """All settings, by section. Build them with `load`, which knows where each value came from."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,
    )

    server: Server = Server()
    limits: LimitSettings = LimitSettings()
    ledger: LedgerSettings = LedgerSettings()
    sql: SqlSettings = SqlSettings()
    retention: Retention = Retention()
    catalog: CatalogSettings = CatalogSettings()
    billing: Billing = Billing()
    proxy: ProxySettings = ProxySettings()
    attribution: Attribution = Attribution()
    budgets: list[Budget] = Field(default_factory=list, description="the operator's budgets, `[[budgets]]`")

    @classmethod
    def settings_customise_sources(  # the library's own signature
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` merged: a value must not slip in without its origin being known."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def fields() -> dict[str, FieldInfo]:
    """Every setting: `section.name` -> field."""
    return {
        f"{section}.{name}": field
        for section, model in sections().items()
        for name, field in model.model_fields.items()
    }


def sections() -> dict[str, type[Section]]:
    """The sections: name -> model."""
    models = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {
        name: model
        for name, model in models.items()
        if isinstance(model, type) and issubclass(model, Section)
    }


def env_name(key: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + key.replace(".", "_").upper()


def value_of(settings: Settings, key: str) -> Any:
    """The value of `section.name`."""
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)
