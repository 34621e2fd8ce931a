"""The reader: a child process that answers one SQL query at a time from the published `usage.duckdb`.

It exists because some queries cannot be stopped from inside the process that runs them (a `repeat` of
two gigabytes, a `levenshtein` of two long texts): the parent kills this process when a deadline passes, and
nothing is lost. It refuses everything but one reading statement. Three walls stand behind that check: the
file is open read-only; DuckDB's external access is off and its configuration locked; the process may
write no file and map no more memory than it was given. It ends when the parent is gone, however it went.

Run as `python -m tollbook.reader`, it speaks length-prefixed frames on an inherited socket: a request is
JSON `{"sql", "params", "format", "max_rows"}`; an answer is a JSON header `{"ok", ...}` and the body's bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["numpy"] = None  # type: ignore[assignment]  # Arrow loads it where it finds it, and needs none

import duckdb
import orjson
import pyarrow as pa

from tollbook import reader_rows

LENGTH = struct.Struct(">I")
BATCH_ROWS = 2_000
MESSAGE_CHARS = 2_000
ADDRESS_SLACK_BYTES = 512 << 20  # what Python, Arrow and the allocator map beside DuckDB's own limit
PR_SET_PDEATHSIG = 1
SEALED = "sealed"  # the folder of older days, which the view `calls` reads
READING = {"SELECT", "EXPLAIN"}  # DuckDB parses WITH, VALUES, FROM, DESCRIBE, SHOW and SUMMARIZE to SELECT
LOCKDOWN = (  # in this order: each closes a door that the next ones no longer need
    "SET enable_progress_bar = false",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET home_directory = '/'",
    "SET temp_directory = ''",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (duckdb.OutOfMemoryException, "query_too_large"),
    (MemoryError, "query_too_large"),
    (duckdb.PermissionException, "sql_refused"),
    (duckdb.Error, "sql_error"),
    (pa.ArrowException, "sql_error"),
    (OverflowError, "sql_error"),
    (ValueError, "sql_error"),
    (TypeError, "sql_error"),
)


Reply = tuple[dict[str, Any], bytes]  # header and body


class Refused(Exception):
    """A query that is not run, with the problem's code and a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """What one reader may use. `isolate` opens the file anew for every query, so that none leaves a trace."""

    memory_bytes: int
    max_reply_bytes: int
    isolate: bool


class PublishedFile:
    """The newest `usage.duckdb`, opened read-only and opened again when it was replaced."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._identity: tuple[int, int, int] | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor on the file as it is published now; Refused if there is none yet."""
        identity = self._identify()
        if self._connection is None or identity != self._identity or self._limits.isolate:
            self.close()
            self._connection = self._open()
            self._identity = identity
        return self._connection.cursor()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _identify(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            raise Refused("not_published", "no usage.duckdb is published yet") from None
        return status.st_dev, status.st_ino, status.st_mtime_ns

    def _open(self) -> duckdb.DuckDBPyConnection:
        memory = f"{self._limits.memory_bytes}B"
        try:
            connection = duckdb.connect(
                str(self._path), read_only=True, config={"threads": 1, "memory_limit": memory}
            )
        except duckdb.Error:
            raise Refused("not_published", "the published usage.duckdb cannot be opened") from None
        sealed = str(self._path.resolve().parent / SEALED).replace("'", "''")
        for statement in (f"SET allowed_directories = ['{sealed}/']", *LOCKDOWN):
            connection.execute(statement)
        return connection


def single_statement(sql: str) -> duckdb.Statement:
    """The one reading statement in `sql`; Refused otherwise."""
    try:
        statements = duckdb.extract_statements(sql)
        kinds = [statement.type.name for statement in statements]
    except ValueError:
        raise Refused("sql_refused", "this kind of statement is not allowed here") from None
    if len(statements) != 1:
        raise Refused("sql_refused", f"send exactly one statement, not {len(statements)}")
    if kinds[0] not in READING:
        raise Refused("sql_refused", f"{kinds[0]} is not allowed: only reading statements are")
    return statements[0]


def answer(file: PublishedFile, request: dict[str, Any], *, max_reply_bytes: int) -> Reply:
    """Header and body for one request."""
    statement = single_statement(request["sql"])
    cursor = file.cursor()
    try:
        reader = cursor.execute(statement, request["params"] or None).to_arrow_reader(BATCH_ROWS)
        batches, truncated = reader_rows.take(iter(reader), request["max_rows"])
        body = _render(request["format"], reader.schema, batches, truncated=truncated)
    finally:
        cursor.close()
    if len(body) > max_reply_bytes:
        raise Refused("query_too_large", f"the answer has {len(body)} bytes, {max_reply_bytes} are allowed")
    rows = sum(batch.num_rows for batch in batches)
    return {"ok": True, "rows": rows, "truncated": truncated}, body


def _render(form: str, schema: pa.Schema, batches: list[pa.RecordBatch], *, truncated: bool) -> bytes:
    if form == "csv":
        return reader_rows.as_csv(schema, batches)
    if form == "arrow":
        return reader_rows.as_arrow(schema, batches)
    return reader_rows.as_json(schema, batches, truncated=truncated)


def answer_or_problem(file: PublishedFile, request: dict[str, Any], *, max_reply_bytes: int) -> Reply:
    """As `answer`, with every fault turned into `{"ok": false, "code", "detail"}`."""
    try:
        return answer(file, request, max_reply_bytes=max_reply_bytes)
    except Refused as refusal:
        return {"ok": False, "code": refusal.code, "detail": str(refusal)}, b""
    except tuple(kind for kind, _ in ERRORS) as error:
        code = next(code for kind, code in ERRORS if isinstance(error, kind))
        if isinstance(error, duckdb.FatalException | duckdb.InternalException | MemoryError):
            file.close()
        detail = clean(str(error), one_line=code == "query_too_large")
        return {"ok": False, "code": code, "detail": detail}, b""


def clean(message: str, *, one_line: bool = False) -> str:
    """An engine's message without this machine's paths, cut to a readable length (or to its first line)."""
    if one_line:
        message = message.partition("\n")[0]
    for private in (str(Path.cwd()), str(Path.home())):
        if len(private) > 1:
            message = message.replace(private, "")
    return message[:MESSAGE_CHARS] or "the query failed"


# --- the process -------------------------------------------------------------------------------------


def main() -> None:
    """Serve queries on the inherited socket until it closes."""
    arguments = _arguments()
    limits = Limits(arguments.memory_bytes, arguments.max_reply_bytes, isolate=arguments.isolate)
    path = Path(arguments.database).absolute()
    _die_with_parent(arguments.parent)
    _wall_in(limits.memory_bytes)
    channel = socket.socket(fileno=arguments.fd)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, requests), daemon=True).start()
    if path.parent.is_dir():
        os.chdir(path.parent)  # so that `clean` knows what to hide
    _send(channel, {"ok": True}, b"")
    file = PublishedFile(path, limits)
    while True:
        request = orjson.loads(requests.get())
        _send(channel, *answer_or_problem(file, request, max_reply_bytes=limits.max_reply_bytes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tollbook.reader")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--max-reply-bytes", type=int, required=True)
    parser.add_argument("--isolate", action="store_true")
    return parser.parse_args()


def _die_with_parent(parent: int) -> None:
    """Linux: be killed when the parent ends. Elsewhere the closed socket does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _wall_in(memory_bytes: int) -> None:
    """No file may grow, no memory beyond the limit, low priority; Ctrl-C is for the parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ceiling = _mapped_bytes() + memory_bytes + ADDRESS_SLACK_BYTES
    with contextlib.suppress(
        ValueError, OSError
    ):  # macOS has no usable RLIMIT_AS; the deadline still holds there
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def _mapped_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 1 << 30
    return pages * resource.getpagesize()


def _receive(channel: socket.socket, requests: queue.SimpleQueue[bytes]) -> None:
    """Hand requests to the main thread; end the process the moment the parent's end is closed."""
    while True:
        head = _read(channel, LENGTH.size)
        requests.put(_read(channel, LENGTH.unpack(head)[0]))


def _read(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = b""
        with contextlib.suppress(OSError):
            part = channel.recv(size - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


def _send(channel: socket.socket, header: dict[str, Any], body: bytes) -> None:
    head = orjson.dumps(header)
    try:
        channel.sendall(LENGTH.pack(LENGTH.size + len(head) + len(body)) + LENGTH.pack(len(head)) + head)
        channel.sendall(body)
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    main()
