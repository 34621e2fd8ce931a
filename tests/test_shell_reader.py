"""The reader child, for real: what it answers, what it refuses, and that it can always be ended."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from tests.shell_house import CALLS, call, publish
from tollbook.problems import Problem
from tollbook.reader_pool import ReaderLimits, ReaderPool

LIMITS = ReaderLimits(
    timeout_s=3.0, max_rows=100, memory_bytes=256 << 20, max_reply_bytes=1 << 20, queue_length=2
)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[ReaderPool]:
    publish(tmp_path / "usage.duckdb")
    pool = ReaderPool(tmp_path / "usage.duckdb", LIMITS)
    await pool.start()
    await one(pool, "1")  # which starts the child for users' SQL
    yield pool
    await pool.close()


async def one(pool: ReaderPool, expression: str, params: object = None) -> object:
    answer = await pool.query(f"SELECT {expression}", params, lane="sql")  # type: ignore[arg-type]
    return orjson.loads(answer.body)["rows"][0][0]


EXACT: list[tuple[str, object]] = [
    ("1.5::DECIMAL(18,12)", "1.500000000000"),
    ("0.000000000001::DECIMAL(18,12)", "0.000000000001"),
    (
        "-12345678901234567890123456.000000000001::DECIMAL(38,12)",
        "-12345678901234567890123456.000000000001",
    ),
    ("9007199254740992::HUGEINT", 9007199254740992),
    ("9007199254740993::HUGEINT", "9007199254740993"),
    ("9223372036854775807::BIGINT", 9223372036854775807),
    ("18446744073709551615::UBIGINT", 18446744073709551615),
    ("sum(x) FROM (VALUES (1), (2)) t(x)", 3),
    ("true", True),
    ("NULL", None),
    ("'nan'::DOUBLE", None),
    ("'-infinity'::DOUBLE", None),
    ("1.5::DOUBLE", 1.5),
    ("TIMESTAMPTZ '2026-11-22 10:00:00+02'", "2026-11-22T08:00:00Z"),
    ("TIMESTAMPTZ '2026-11-22 10:00:00.123456+00'", "2026-11-22T10:00:00.123456Z"),
    ("TIMESTAMP '1969-12-31 23:59:59.5'", "1969-12-31T23:59:59.500000Z"),
    ("TIMESTAMP_NS '2026-11-22 10:00:00.123456789'", "2026-11-22T10:00:00.123456789Z"),
    ("'infinity'::TIMESTAMPTZ", "infinity"),
    ("DATE '2026-11-22'", "2026-11-22"),
    ("MAP {'a': 'b'}", {"a": "b"}),
    ("MAP {1: TIMESTAMPTZ '2026-11-22 10:00:00+00'}", {"1": "2026-11-22T10:00:00Z"}),
    ("{'cost': 0.1::DECIMAL(18,12), 'parts': [1, NULL]}", {"cost": "0.100000000000", "parts": [1, None]}),
    ("'a\\x00b'::BLOB", "YQBi"),
    ("'ok'::ENUM('ok', 'error')", "ok"),
]


async def test_every_type_leaves_exactly(pool: ReaderPool) -> None:
    for expression, value in EXACT:
        assert await one(pool, expression) == value, expression


async def test_parameters_are_a_list_or_names(pool: ReaderPool) -> None:
    assert await one(pool, "? || ?", ["a", "b"]) == "ab"
    assert await one(pool, "$one || $two", {"one": "a", "two": "b"}) == "ab"
    with pytest.raises(Problem, match="parameter") as caught:
        await one(pool, "?", ["a", "b"])
    assert caught.value.code == "sql_error"


async def test_all_ways_of_reading_are_answered(pool: ReaderPool) -> None:
    for sql in ("FROM calls", "DESCRIBE calls", "SHOW TABLES", "EXPLAIN SELECT 1", "VALUES (1);"):
        assert (await pool.query(sql, lane="sql")).rows >= 1, sql


async def test_rows_beyond_the_limit_are_left_out_and_said(pool: ReaderPool) -> None:
    exact = await pool.query("FROM range(100)", lane="sql")
    more = await pool.query("FROM range(1000000000000)", lane="sql")
    asked = await pool.query("FROM range(10)", lane="sql", max_rows=3)
    assert (exact.rows, exact.truncated) == (100, False)
    assert (more.rows, more.truncated) == (100, True)
    assert (asked.rows, orjson.loads(asked.body)["truncated"]) == (3, True)


async def test_csv_and_arrow(pool: ReaderPool) -> None:
    sql = (
        "SELECT call_id, list_cost_usd, labels, streaming, started_at FROM calls ORDER BY started_at LIMIT 1"
    )
    text = (await pool.query(sql, lane="sql", form="csv")).body.decode()
    assert text == (
        "call_id,list_cost_usd,labels,streaming,started_at\r\n"
        f'c{0:032x},0.010000000000,"{{""ticket"":""A-1""}}",,2026-11-20T10:30:00Z\r\n'
    )
    stream = (await pool.query(sql, lane="sql", form="arrow")).body
    table = pa.ipc.open_stream(io.BytesIO(stream)).read_all()
    assert table["list_cost_usd"].to_pylist() == [CALLS[0]["list_cost_usd"]]
    assert table["started_at"].cast(pa.int64()).to_pylist() == [
        int(CALLS[0]["started_at"].timestamp() * 1_000_000)
    ]


HOSTILE = [
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_blob('journal/00000000000000000000.seg')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM duckdb_extensions()",
    "COPY calls TO 'stolen.csv'",
    "COPY (SELECT 1) TO '/tmp/stolen.parquet'",
    "WITH x AS (COPY calls TO 'stolen.csv') SELECT 1",
    "ATTACH 'other.duckdb'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "EXPORT DATABASE 'stolen'",
    "DELETE FROM calls",
    "WITH gone AS (DELETE FROM calls RETURNING *) SELECT count(*) FROM gone",
    "WITH more AS (INSERT INTO meta VALUES ('a', 'b') RETURNING *) SELECT * FROM more",
    "EXPLAIN ANALYZE DELETE FROM calls",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TABLE t AS SELECT 1",
    "SET threads = 8",
    "SET VARIABLE a = 1",
    "RESET threads",
    "PRAGMA enable_profiling",
    "CALL duckdb_tables()",
    "CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "USE memory",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE calls",
    "",
    "-- nothing",
    "SELEC 1",
    "SELECT no_such_column FROM calls",
    "SELECT 'x'::INTEGER",
    "SELECT TIMESTAMPTZ '200000-01-01 00:00:00+00'",
]


async def test_hostile_statements_are_refused_and_leave_nothing(pool: ReaderPool, tmp_path: Path) -> None:
    for sql in HOSTILE:
        with pytest.raises(Problem) as caught:
            await pool.query(sql, lane="sql")
        assert caught.value.code in ("sql_refused", "sql_error"), sql
        assert str(tmp_path) not in caught.value.detail
        assert str(Path.home()) not in caught.value.detail
    assert [path.name for path in tmp_path.iterdir()] == ["usage.duckdb"]
    assert await one(pool, "count(*) FROM calls") == len(CALLS)
    assert pool.counts.killed == pool.counts.restarts == 0


async def test_no_query_can_read_python_or_the_environment(
    pool: ReaderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = pool._lanes["sql"]._child
    assert child is not None
    environment = Path(f"/proc/{child.process.pid}/environ").read_bytes()
    assert {entry.split(b"=")[0] for entry in environment.split(b"\0") if entry} <= {
        *(b"PATH", b"HOME", b"PYTHONPATH", b"PYTHONDONTWRITEBYTECODE", b"LD_LIBRARY_PATH")
    }
    with pytest.raises(Problem):
        await pool.query("SELECT * FROM request", lane="sql")


async def test_state_does_not_pass_from_one_users_query_to_the_next(pool: ReaderPool) -> None:
    await pool.query("SELECT * FROM enable_logging('QueryLog')", lane="sql")
    await pool.query("SELECT 'private matter'", lane="sql")
    assert await one(pool, "count(*) FROM duckdb_logs WHERE message LIKE '%private%'") == 0


ENDLESS = [
    "SELECT count(*) FROM range(1000000000000000) t(i) WHERE i % 3 = 5",
    "SELECT count(*) FROM range(1000000000000) a, range(1000000000000) b",
    "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    "SELECT length(repeat('x', 2000000000))",
    "SELECT sum(length(repeat('ab', 100000000 + i))) FROM range(100000) t(i)",
    "SELECT list(i ORDER BY i) FROM range(200000000) t(i)",
]


async def test_what_never_ends_is_ended_and_the_next_query_works(pool: ReaderPool) -> None:
    for sql in ENDLESS:
        before = time.monotonic()
        with pytest.raises(Problem) as caught:
            await pool.query(sql, lane="sql", timeout_s=1.0)
        assert caught.value.code in ("query_timeout", "query_too_large", "query_killed"), sql
        assert time.monotonic() - before < 20, sql  # for good it would be, but for the limit of 1 s
        assert await one(pool, "42") == 42


async def test_a_slow_users_query_does_not_hold_up_the_api(pool: ReaderPool) -> None:
    slow = asyncio.create_task(pool.query(ENDLESS[0], lane="sql", timeout_s=2.0))
    await asyncio.sleep(0.1)
    before = time.monotonic()
    await pool.query("SELECT count(*) FROM calls", lane="api")
    assert time.monotonic() - before < 1.0
    with pytest.raises(Problem):
        await slow


async def test_a_full_queue_is_refused_at_once(pool: ReaderPool) -> None:
    slow = [asyncio.create_task(pool.query(ENDLESS[0], lane="sql", timeout_s=1.0)) for _ in range(3)]
    await asyncio.sleep(0.1)
    with pytest.raises(Problem) as caught:
        await pool.query("SELECT 1", lane="sql")
    assert (caught.value.code, caught.value.retry_after_s) == ("reader_busy", 1)
    results = await asyncio.gather(*slow, return_exceptions=True)
    assert {result.code for result in results if isinstance(result, Problem)} <= {
        "query_timeout",
        "reader_busy",
    }
    assert await one(pool, "1") == 1


async def test_an_answer_too_large_to_hold_is_refused(pool: ReaderPool) -> None:
    with pytest.raises(Problem) as caught:
        await pool.query("SELECT repeat('x', 2000000)", lane="sql")
    assert caught.value.code == "query_too_large"


async def test_a_new_file_is_seen_by_the_next_query(pool: ReaderPool, tmp_path: Path) -> None:
    assert (await pool.query("SELECT count(*) AS n FROM calls")).records() == [{"n": len(CALLS)}]
    publish(tmp_path / "usage.duckdb", [call(0), call(1)])
    assert (await pool.query("SELECT count(*) AS n FROM calls")).records() == [{"n": 2}]


async def test_a_child_that_is_killed_is_replaced(pool: ReaderPool) -> None:
    for lane in pool._lanes.values():
        assert lane._child is not None
        lane._child.process.kill()
        await lane._child.process.wait()
    assert not pool.alive
    assert (await pool.query("SELECT 1 AS x")).records() == [{"x": 1}]
    assert await one(pool, "1") == 1
    assert pool.alive


async def test_a_cancelled_query_frees_its_reader(pool: ReaderPool) -> None:
    task = asyncio.create_task(pool.query(ENDLESS[0], lane="sql"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await one(pool, "7") == 7


async def test_before_the_first_publish_it_says_so(tmp_path: Path) -> None:
    pool = ReaderPool(tmp_path / "usage.duckdb", LIMITS)
    await pool.start()
    try:
        with pytest.raises(Problem) as caught:
            await pool.query("SELECT 1")
        assert caught.value.code == "not_published"
        publish(tmp_path / "usage.duckdb")
        assert (await pool.query("SELECT 1 AS x")).rows == 1
    finally:
        await pool.close()


HOLDER = """
import asyncio, sys
from pathlib import Path
from tollbook.reader_pool import ReaderPool

async def main():
    pool = ReaderPool(Path(sys.argv[1]))
    await pool.start()
    await pool.query("SELECT 1", lane="sql")
    print(*(lane._child.process.pid for lane in pool._lanes.values()), flush=True)
    await pool.query("SELECT count(*) FROM range(1000000000000000) t(i) WHERE i % 3 = 5", lane="sql")

asyncio.run(main())
"""


def test_readers_end_with_their_parent_even_in_the_middle_of_a_query(tmp_path: Path) -> None:
    publish(tmp_path / "usage.duckdb")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "usage.duckdb")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        readers = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in readers):
        assert time.monotonic() < deadline, "a reader outlived its parent"
        time.sleep(0.02)
    assert len(readers) == 2


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_pool_loads_no_heavy_library() -> None:
    heavy = "('duckdb', 'pyarrow', 'polars', 'numpy')"
    script = f"import sys, tollbook.reader_pool; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
