"""What providers said themselves about the windows of their plans: the newest word per account and window.

Headers come with every answer that somebody carried who passes them on (`tollbook.headers`). Only the newest
of a batch is read for each account, so their number costs nothing.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple, Protocol

import duckdb
import polars as pl

from billing.store import frames, read

__all__ = ["HeaderReader", "Reading", "note_quotas", "quotas"]

_SCHEMA = {
    "provider": pl.String(),
    "account_id": pl.String(),
    "quota": pl.String(),
    "used_fraction": pl.Decimal(18, 6),
    "resets_at": pl.Datetime("us", "UTC"),
    "seen_at": pl.Datetime("us", "UTC"),
}


class Reading(NamedTuple):
    """How much of a window a provider said was used, when, and until when the window lasts."""

    used_fraction: Decimal
    resets_at: datetime | None
    seen_at: datetime


class HeaderReader(Protocol):
    """What reading headers needs of the catalogue."""

    def quotas(self, headers: str, seen_at: datetime) -> list[tuple[str, str, Decimal, datetime | None]]:
        """Provider, window, the part used, and the reset, for each window that headers tell of."""
        ...


def note_quotas(connection: duckdb.DuckDBPyConnection, observed: pl.DataFrame, catalog: HeaderReader) -> bool:
    """Keep what fresh observations tell of windows; whether there was anything."""
    told = observed.filter(pl.col("headers").is_not_null())
    if told.is_empty():
        return False
    newest = told.sort("ended_at").unique(["account_id", "provider_name"], keep="last", maintain_order=True)
    rows = [
        (provider, account, window, used, resets_at, seen_at)
        for account, headers, seen_at in newest.select("account_id", "headers", "ended_at").iter_rows()
        for provider, window, used, resets_at in catalog.quotas(headers, seen_at)
    ]
    if not rows:
        return False
    _keep_newest(connection, pl.DataFrame(rows, schema=_SCHEMA, orient="row"))
    return True


def _keep_newest(connection: duckdb.DuckDBPyConnection, rows: pl.DataFrame) -> None:
    with frames(connection, told=rows):
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE newest AS SELECT * FROM "
            "(SELECT * FROM plan_quotas UNION ALL BY NAME SELECT * FROM told) "
            "QUALIFY row_number() OVER (PARTITION BY provider, account_id, quota "
            "ORDER BY seen_at DESC, used_fraction DESC) = 1"
        )
    connection.execute("DELETE FROM plan_quotas")
    connection.execute("INSERT INTO plan_quotas BY NAME SELECT * FROM newest")


def quotas(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str | None, str], Reading]:
    """The newest readings by provider, account and window."""
    rows = read(connection, "SELECT * FROM plan_quotas").select(*_SCHEMA).iter_rows()
    return {(provider, account, window): Reading(*told) for provider, account, window, *told in rows}
