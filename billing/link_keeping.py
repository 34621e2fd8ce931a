"""Which span links outlive their time: those that lead from a stored record to the records above it.

Links are many and soon forgotten; but a better dialect may read a record again for as long as it is kept, and
then what is one call must be found the same way as at first. In a trace in which ancestry can join or cover
anything, the few links on the way up from its records stay as long as the records themselves.
"""

from __future__ import annotations

from datetime import datetime

import duckdb

__all__ = ["forget_links"]

MAX_HOPS = 64
"""Spans between two records of one call, at most, that are still known when links are forgotten."""

_ON_THE_WAY = """
CREATE OR REPLACE TEMP TABLE links_kept AS
WITH RECURSIVE old AS (
  SELECT DISTINCT trace_hi, trace_lo, span_id, parent_span_id FROM span_links
  WHERE received_at < $before AND kept_until IS NULL
), walked AS (
  SELECT trace_hi, trace_lo FROM observations
  WHERE trace_lo IN (SELECT trace_lo FROM old) GROUP BY ALL
  HAVING count(DISTINCT layer || chr(31) || name) > 1 OR bool_or(role <> 'call')
), way AS (
  SELECT DISTINCT trace_hi, trace_lo, 0 AS hops,
         CASE WHEN o.signal = 'span' THEN o.parent_span_id ELSE o.span_id END AS span_id
  FROM observations o JOIN walked USING (trace_hi, trace_lo)
  UNION ALL
  SELECT DISTINCT trace_hi, trace_lo, w.hops + 1, old.parent_span_id
  FROM way w JOIN old USING (trace_hi, trace_lo, span_id)
  WHERE w.hops < $hops AND old.parent_span_id IS NOT NULL
)
SELECT DISTINCT trace_hi, trace_lo, span_id FROM way WHERE span_id IS NOT NULL
"""
_SAME = "(trace_hi, trace_lo, span_id) IN (SELECT (trace_hi, trace_lo, span_id) FROM links_kept)"


def forget_links(
    connection: duckdb.DuckDBPyConnection, *, before: datetime, kept_until: datetime, now: datetime
) -> None:
    """Inside a transaction: delete the links received `before`, but for those that lead to records above.

    Those are deleted once `kept_until`, which is told here, has passed.
    """
    connection.execute(_ON_THE_WAY, {"before": before, "hops": MAX_HOPS})
    due = "received_at < ? AND kept_until IS NULL"
    connection.execute(f"UPDATE span_links SET kept_until = ? WHERE {due} AND {_SAME}", [kept_until, before])
    connection.execute(f"DELETE FROM span_links WHERE {due}", [before])
    connection.execute("DELETE FROM span_links WHERE kept_until < ?", [now])
