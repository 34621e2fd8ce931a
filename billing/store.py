"""How the ledger's DuckDB file is opened, laid out and fed with frames.

Frames cross as Arrow, without predicates pushed into them. One writer process at a time holds the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from billing import spend, tables
from billing.kinds import Kinds
from billing.layout import LedgerLocked, bring_up_ledger
from ingest.observation import FIDELITY, LINKS, METRIC_POINTS, OBSERVATIONS, REJECTS

os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "reallocate")  # slices of frames need not be aligned

STORAGE_VERSION = "v1.5.0"
"""DuckDB's file format: the newest that a 1.5 command line opens."""
OBSERVED = {
    **{name: kind for name, kind in OBSERVATIONS.items() if name != "attributes"},
    **dict.fromkeys(("response_key", "request_key", "fingerprint_key"), pl.UInt64()),
}
"""The columns of `observations`: what telemetry tells, and keys to find it by; see `evidence`."""

_TYPES = {
    pl.UInt64: "UBIGINT",
    pl.Int64: "BIGINT",
    pl.Int32: "INTEGER",
    pl.Int16: "SMALLINT",
    pl.UInt8: "UTINYINT",
    pl.Float64: "DOUBLE",
    pl.Boolean: "BOOLEAN",
    pl.String: "VARCHAR",
    pl.Binary: "BLOB",
    pl.Datetime: "TIMESTAMPTZ",
}
_COMMIT_NO = "commit_no UBIGINT"


def connect(path: Path, *, memory_limit: str, threads: int, wait_s: float) -> duckdb.DuckDBPyConnection:
    """A connection whose current database is the ledger file; waits up to `wait_s` for another's lock.

    A file of an earlier layout is brought up to date. Raises LedgerRefused (`billing.layout`).
    """
    connection = duckdb.connect(config={"memory_limit": memory_limit, "threads": threads})
    for setting in _SETTINGS:
        connection.execute(setting)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            attach(connection, path, name="ledger")
            break
        except duckdb.IOException as error:
            if "lock" not in str(error).lower() or time.monotonic() > deadline:
                connection.close()
                raise LedgerLocked(
                    f"{path} is held by another process; is a tollbook running here?"
                ) from error
            time.sleep(0.05)
    connection.execute("USE ledger")
    try:
        aside = {kinds.view: kinds.set_aside for kinds in KINDS.values()}
        bring_up_ledger(connection, list(_ddl()), name="ledger", set_aside=aside)
    except BaseException:
        connection.close()
        raise
    return connection


_SETTINGS = (
    "SET enable_progress_bar = false",
    "SET GLOBAL TimeZone = 'UTC'",
    "SET preserve_insertion_order = true",
    "SET disabled_optimizers = 'join_filter_pushdown'",  # it fails on frames of 64-bit keys
    "SET checkpoint_threshold = '1GB'",  # long before, `checkpoint` folds the log
)


def attach(connection: duckdb.DuckDBPyConnection, path: Path, *, name: str, options: str = "") -> None:
    """Attach a DuckDB file, made in the storage version that 1.5 reads; `options` as DuckDB writes them."""
    location = str(path).replace("'", "''")
    told = ", ".join(filter(None, [f"STORAGE_VERSION '{STORAGE_VERSION}'", options]))
    connection.execute(f"ATTACH '{location}' AS {name} ({told})")


def _ddl() -> Iterator[str]:
    yield "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER, ledger_id UUID)"
    yield (
        "CREATE TABLE IF NOT EXISTS commits "
        "(commit_no UBIGINT, epoch VARCHAR, position UBIGINT, committed_at TIMESTAMPTZ)"
    )
    yield from OBSERVATION_KINDS.ddl()
    yield (
        "CREATE TABLE IF NOT EXISTS kept_attributes "
        f"(last_effective_at TIMESTAMPTZ, attributes BLOB, {_COMMIT_NO})"
    )
    yield (
        "CREATE TABLE IF NOT EXISTS aggregates_alone (id_hi UBIGINT, id_lo UBIGINT, trace_lo UBIGINT, "
        "service VARCHAR, session_id VARCHAR, ended_at TIMESTAMPTZ)"
    )
    yield f"CREATE TABLE IF NOT EXISTS metric_points ({_of(METRIC_POINTS)}, {_COMMIT_NO})"
    yield (
        "CREATE TABLE IF NOT EXISTS metric_hours (service VARCHAR, instance VARCHAR, emitter VARCHAR, "
        "hour TIMESTAMPTZ, covered BOOLEAN, input_tokens BIGINT, output_tokens BIGINT)"
    )
    yield "CREATE TABLE IF NOT EXISTS metric_calls (call_id VARCHAR, service VARCHAR, hour TIMESTAMPTZ)"
    yield (
        f"CREATE TABLE IF NOT EXISTS span_links ({_of(LINKS)}, received_at TIMESTAMPTZ, {_COMMIT_NO}, "
        "kept_until TIMESTAMPTZ)"
    )
    yield f"CREATE TABLE IF NOT EXISTS rejects ({_of(REJECTS)})"
    yield "CREATE TABLE IF NOT EXISTS dirty_slots (slot TIMESTAMPTZ, commit_no UBIGINT)"
    yield (
        "CREATE TABLE IF NOT EXISTS unrecognised "
        "(scope VARCHAR, name VARCHAR, signal VARCHAR, count BIGINT, last_seen TIMESTAMPTZ)"
    )
    yield from CALL_KINDS.ddl()
    commit = (tables.Column("commit_no", "UBIGINT", "the transaction that wrote the row"),)
    yield tables.create_table("call_revisions", (*tables.CALL_REVISIONS, tables.EVIDENCE, *commit))
    yield from spend.DDL
    yield tables.create_table("plan_quotas", tables.PLAN_QUOTAS)
    yield tables.create_table("jobs", tables.LEDGER_JOBS)
    yield tables.create_table("job_changes", tables.JOB_CHANGES)
    yield (
        "CREATE TABLE IF NOT EXISTS emitter_records "
        "(emitter VARCHAR, signal VARCHAR, version VARCHAR, records BIGINT, last_seen TIMESTAMPTZ)"
    )
    yield (
        "CREATE TABLE IF NOT EXISTS emitter_calls (emitter VARCHAR, calls BIGINT, errors BIGINT, "
        "duplicates_merged BIGINT, usage_unknown_calls BIGINT, aggregates BIGINT, from_metrics BIGINT)"
    )
    yield f"CREATE TABLE IF NOT EXISTS emitter_fidelity ({_of(FIDELITY)})"


def _of(schema: Any) -> str:
    return ", ".join(f"{name} {sql_type(kind)}" for name, kind in schema.items())


def sql_type(kind: Any) -> str:
    """The DuckDB type that holds a Polars type."""
    if isinstance(kind, pl.List):
        return f"{sql_type(kind.inner)}[]"
    if isinstance(kind, pl.Struct):
        return "STRUCT(" + ", ".join(f"{f.name} {sql_type(f.dtype)}" for f in kind.fields) + ")"
    if isinstance(kind, pl.Decimal):
        return f"DECIMAL({kind.precision},{kind.scale})"
    return _TYPES[kind.base_type()]


@contextmanager
def frames(connection: duckdb.DuckDBPyConnection, **named: pl.DataFrame) -> Iterator[None]:
    """Make frames readable by SQL under their names for the length of the block."""
    for name, frame in named.items():
        connection.register(name, frame.to_arrow(compat_level=pl.CompatLevel.newest()))
    try:
        yield
    finally:
        for name in named:
            connection.unregister(name)


@contextmanager
def staged(connection: duckdb.DuckDBPyConnection, **named: pl.DataFrame) -> Iterator[None]:
    """The same as temporary tables: for queries that would push conditions into a frame's strings."""
    for name, frame in named.items():
        with frames(connection, arriving=frame):
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM arriving")
    yield
    for name in named:
        connection.execute(f"DROP TABLE temp.{name}")


def read(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[object] = ()
) -> pl.DataFrame:
    """A query's whole answer as a frame."""
    answer = connection.execute(query, list(parameters)).to_arrow_table()
    frame = pl.from_arrow(answer)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()


def append(
    connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame, *, commit_no: int | None = None
) -> None:
    """Insert a frame's rows by column name; entry lists become maps where the table's column is one.

    Rows of a table that is kept in two (`kinds`) go where they belong.
    """
    if frame.is_empty():
        return
    if (kinds := KINDS.get(table)) is not None:
        frame, new = kinds.numbered(frame, read(connection, kinds.newest))
        append(connection, kinds.table, new)
        table = kinds.rows
    maps = _MAPS.get(table, ())
    columns = [f"map_from_entries({n}) AS {n}" if n in maps else n for n in frame.columns]
    if commit_no is not None:
        columns.append(f"{commit_no} AS commit_no")
    with frames(connection, told=frame):
        connection.execute(f"INSERT INTO {table} BY NAME SELECT {', '.join(columns)} FROM told")


def entry_list(value: pl.DataType) -> pl.DataType:
    """What a map from DuckDB becomes in a frame that goes back there."""
    return pl.List(pl.Struct({"key": pl.String(), "value": value}))


CALL_LISTS = {
    column.name: entry_list(pl.Int64() if "BIGINT" in column.type else pl.String())
    for column in tables.CALLS
    if column.type.startswith("MAP")
}
OBSERVATION_KINDS = Kinds(
    "observations",
    {**{name: sql_type(kind) for name, kind in OBSERVED.items()}, "commit_no": "UBIGINT"},
    shared=(
        *("effective_from", "signal", "scope", "scope_version", "name", "layer", "emitter", "rank", "role"),
        *("status", "http_status", "error_type", "streaming", "service", "instance", "agent", "user_id"),
        *("account_id", "team", "project", "environment", "labels", "provider_name", "server_address"),
        *("server_port", "url", "request_model", "response_model", "access_hint", "access_evidence"),
        *("credential_kind", "plan_hint", "service_tier", "speed", "batch", "region", "operation"),
        "anomalies",
    ),
    row_no=True,
)
CALL_KINDS = Kinds(
    "calls",
    {**{column.name: column.type for column in tables.LEDGER_CALLS}, "commit_no": "UBIGINT"},
    shared=(
        *("status", "http_status", "error_type", "streaming", "emitter", "basis", "observation_count"),
        *("call_count", "service", "agent", "user_id", "account_id", "team", "project", "environment"),
        *("labels", "provider", "served_model", "request_model", "response_model", "model", "snapshot"),
        *("resolution", "modifiers", "access", "access_evidence", "access_confidence", "plan_id"),
        *("usage_known", "usage_complete", "service_tier", "speed", "batch", "region", "cost_status"),
        *("price_id", "catalog_version", "revision"),
    ),
)
KINDS = {kinds.view: kinds for kinds in (OBSERVATION_KINDS, CALL_KINDS)}
"""The widest tables, of which a row has little of its own: half the cost of a commit."""
_MAPS = {
    "call_revisions": tuple(CALL_LISTS),
    CALL_KINDS.rows: tuple(name for name in CALL_LISTS if name not in CALL_KINDS.shared),
    CALL_KINDS.table: tuple(name for name in CALL_LISTS if name in CALL_KINDS.shared),
}
