"""How a query's answer leaves the reader: Arrow batches to JSON values, CSV text or Arrow bytes.

Money must not pass through a float and times must not lose their zone, so every type has its own
rule here: integers and booleans native, DECIMAL as plain decimal strings, times RFC 3339 with `Z`, maps and
structs as objects, BLOB as base64, NULL and non-finite floats as null, and a HUGEINT beyond 2**53 as a string
(a JSON reader would round it).
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa

SAFE_INTEGER = 2**53
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # times are UTC by the session's setting; the Z is written by hand
UNIT_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
INFINITY = 2**63 - 1  # how DuckDB writes 'infinity'; '-infinity' is its negative


def take(batches: Iterator[pa.RecordBatch], max_rows: int) -> tuple[list[pa.RecordBatch], bool]:
    """The first `max_rows` rows, and whether there was more."""
    kept: list[pa.RecordBatch] = []
    room = max_rows
    for batch in batches:
        if batch.num_rows > room:
            return [*kept, batch.slice(0, room)], True
        kept.append(batch)
        room -= batch.num_rows
    return kept, False


def as_json(schema: pa.Schema, batches: list[pa.RecordBatch], *, truncated: bool) -> bytes:
    """`{"columns", "rows", "truncated"}` as UTF-8 JSON."""
    rows = [row for batch in batches for row in _rows(batch)]
    return orjson.dumps({"columns": schema.names, "rows": rows, "truncated": truncated})


def as_csv(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    """A header line and the rows; NULL is an empty field, lists and maps are JSON text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(schema.names)
    for batch in batches:
        writer.writerows([_csv_field(value) for value in row] for row in _rows(batch))
    return text.getvalue().encode()


def as_arrow(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    """An Arrow IPC stream, types as DuckDB gives them."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _csv_field(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value


def _rows(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return list(zip(*(column_values(column) for column in batch.columns), strict=True))


def column_values(column: Any) -> list[Any]:
    """A column's values as JSON can hold them."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return _timestamps(column.cast(pa.int64()).to_pylist(), UNIT_NS[kind.unit])
    if pa.types.is_nested(kind):
        return [_scalar(value) for value in column]
    convert = _flat_rule(kind)
    values = column.to_pylist()
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _timestamps(values: list[int | None], unit_ns: int) -> list[str | None]:
    return [None if value is None else _rfc3339(value, unit_ns) for value in values]


def _rfc3339(value: int, unit_ns: int) -> str:
    if abs(value) == INFINITY:
        return "infinity" if value > 0 else "-infinity"
    micros, nanos = divmod(value * unit_ns, 1000)
    moment = (EPOCH + timedelta(microseconds=micros)).isoformat()
    if not nanos:
        return f"{moment}Z"
    return f"{moment}{'' if '.' in moment else '.000000'}{nanos:03d}Z"


def _flat_rule(kind: pa.DataType) -> Callable[[Any], Any] | None:
    if pa.types.is_decimal(kind):
        return _integer if kind.scale == 0 and kind.precision == 38 else _decimal
    if pa.types.is_floating(kind):
        return _finite
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        return _base64
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return None
    return _text


def _integer(value: Decimal) -> int | str:
    """A HUGEINT, which DuckDB hands over as DECIMAL(38,0)."""
    number = int(value)
    return number if abs(number) <= SAFE_INTEGER else str(number)


def _decimal(value: Decimal) -> str:
    return format(value, "f")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _base64(value: bytes) -> str:
    return base64.b64encode(bytes(value)).decode()


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _scalar(value: Any) -> Any:  # a pa.Scalar; which class of it depends on the type
    if not value.is_valid:
        return None
    kind = value.type
    if pa.types.is_map(kind):
        return {_key(key): item for key, item in map(_entry, value.values)}
    if pa.types.is_struct(kind):
        return {name: _scalar(item) for name, item in value.items()}
    if pa.types.is_nested(kind) and hasattr(value, "values"):
        return [_scalar(item) for item in value.values]
    return column_values(pa.array([value], type=kind))[0]


def _entry(entry: Any) -> tuple[Any, Any]:
    key, item = entry.values()
    return _scalar(key), _scalar(item)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else orjson.dumps(key).decode()
