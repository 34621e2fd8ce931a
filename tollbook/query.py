"""`tollbook sql`: a query through a running server, or by a reader of its own on the published file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Literal

from tollbook.client import Client, Unreachable
from tollbook.reader_pool import ReaderLimits, ReaderPool
from tollbook.settings import Settings
from tollbook.settings_load import load

SqlForm = Literal["json", "csv"]
MEDIA_TYPES: dict[SqlForm, str] = {"json": "application/json", "csv": "text/csv"}
FILE = "usage.duckdb"


def ask(query: str, *, form: SqlForm, url: str | None, data_dir: Path | None, config: Path | None) -> bytes:
    """The answer's body. A named data folder is read directly; else the server is asked, and if none answers
    the published file of the settings' data folder.
    """
    if data_dir is not None and url is None:
        return _from_file(query, form, load({"server.data_dir": data_dir}, config=config).settings)
    try:
        return Client(url).post_for("/api/v1/sql", {"query": query}, accept=MEDIA_TYPES[form])
    except Unreachable:
        settings = None if url else load(config=config).settings
        if settings is None or not (settings.server.data_dir / FILE).exists():
            raise
        sys.stderr.write("tollbook: no server answers; reading the published file\n")
        return _from_file(query, form, settings)


def _from_file(query: str, form: SqlForm, settings: Settings) -> bytes:
    return asyncio.run(_read(query, form, settings))


async def _read(query: str, form: SqlForm, settings: Settings) -> bytes:
    limits = ReaderLimits(**settings.sql.model_dump())
    pool = ReaderPool(settings.server.data_dir / FILE, limits)
    try:
        answer = await pool.query(query, lane="sql", form=form)
    finally:
        await pool.close()
    if form == "csv" and answer.truncated:
        sys.stderr.write(f"tollbook: only the first {answer.rows} rows are printed\n")
    return answer.body
