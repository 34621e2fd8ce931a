"""`GET /api/v1/usage`: sums of the hourly rollups, with what is not certain kept apart.

`billed_usd` never holds an assumption: what was billed only if our guess of the access or of the provider is
right stands beside it in `assumed_usd` and `estimated_usd`. A sum of which nothing is known is null, not 0.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from billing.tables import ROLLUP_KEYS
from tollbook.problems import Problem
from tollbook.reader_pool import Form, ReaderPool

HOUR = timedelta(hours=1)


def instant(text: str) -> str:
    """An RFC 3339 time with zone, or a date (its first moment in UTC), as RFC 3339 in UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date or an RFC 3339 time, such as 2026-11-22T10:00:00Z") from None
    if moment.tzinfo is None:
        if not _is_date(text):
            raise ValueError("must name its zone, such as Z or +01:00")
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _grouping(text: str) -> str:
    unknown = [name for name in _split(text) if name not in ROLLUP_KEYS]
    if unknown:
        raise ValueError("must be names, with commas between, of: " + ", ".join(ROLLUP_KEYS))
    return text


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


Instant = Annotated[str, AfterValidator(instant)]
Filter = Annotated[str | None, Field(default=None, max_length=512)]


class Filters(BaseModel):
    """Which calls: a dimension equals the value; an empty value asks for those where it is unknown."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, populate_by_name=False)

    since: Instant | None = Field(None, alias="from", description="first moment, RFC 3339 or a date")
    until: Instant | None = Field(None, alias="to", description="moment after the last, RFC 3339 or a date")
    team: Filter
    project: Filter
    environment: Filter
    agent: Filter
    user_id: Filter
    account_id: Filter
    emitter: Filter
    provider: Filter
    model: Filter
    access: Filter
    plan_id: Filter
    cost_status: Filter

    def conditions(self, names: tuple[str, ...] = ROLLUP_KEYS) -> tuple[list[str], list[Any]]:
        """SQL conditions and their parameters for the dimensions told."""
        told = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        where = [f"{name} = ?" if value else f"{name} IS NULL" for name, value in told]
        return where, [value for _, value in told if value]


class UsageQuery(Filters):
    """What is asked of /usage. Times are widened to whole hours."""

    window: Literal["hour", "day", "week", "month"] | None = Field(
        None, description="one row for each (UTC; weeks begin on Monday)"
    )
    group_by: Annotated[str, AfterValidator(_grouping)] = Field(
        "", description="dimensions with commas between: " + ", ".join(ROLLUP_KEYS)
    )

    @property
    def keys(self) -> list[str]:
        return _split(self.group_by)


def _count(name: str) -> str:
    return f"coalesce(sum({name}), 0)::HUGEINT"


def _tokens(name: str) -> str:
    return f"sum({name})::HUGEINT"


def _money(column: str, among: str) -> str:
    """A sum over some statuses; 0 where there are none of them, NULL where nothing of them is known."""
    none = f"count(*) FILTER ({among}) = 0"
    return f"coalesce(sum({column}) FILTER ({among}), CASE WHEN {none} THEN 0 END)::DECIMAL(38,12)"


MEASURES: tuple[tuple[str, str, str], ...] = (
    ("calls", _count("calls"), "calls"),
    ("errors", _count("errors"), "calls that failed"),
    ("usage_unknown_calls", _count("usage_unknown_calls"), "calls whose tokens are unknown"),
    ("unpriced_calls", _count("unpriced_calls"), "calls whose price is unknown: in no amount below"),
    ("input_tokens", _tokens("input_tokens"), "input tokens, cached included"),
    ("cache_read_tokens", _tokens("cache_read_tokens"), "inside input_tokens; null if never told"),
    ("cache_write_tokens", _tokens("cache_write_tokens"), "inside input_tokens; null if never told"),
    ("output_tokens", _tokens("output_tokens"), "output tokens, reasoning included"),
    ("reasoning_tokens", _tokens("reasoning_tokens"), "inside output_tokens; null if never told"),
    (
        "billed_usd",
        _money("billed_cost_usd", "cost_status NOT IN ('assumed', 'estimated')"),
        "what providers invoice, assumptions left out",
    ),
    (
        "assumed_usd",
        _money("billed_cost_usd", "cost_status = 'assumed'"),
        "billed besides, if the calls of unknown access were paid per use",
    ),
    (
        "estimated_usd",
        _money("billed_cost_usd", "cost_status = 'estimated'"),
        "billed besides, if the provider is the likely one",
    ),
    (
        "covered_usd",
        _money("list_cost_usd", "cost_status = 'included'"),
        "list price of what subscriptions covered",
    ),
    ("list_usd", "sum(list_cost_usd)::DECIMAL(38,12)", "list price of everything that has one"),
    (
        "reported_usd",
        "sum(reported_cost_usd)::DECIMAL(38,12)",
        "what emitters claimed; never added to the rest",
    ),
)


class UsageReply(BaseModel):
    """Sums by group, dearest first, and over all. Money is a decimal string in US dollars."""

    since: str | None = Field(None, alias="from", description="first moment counted")
    until: str | None = Field(None, alias="to", description="moment after the last one counted")
    window: str | None
    group_by: list[str]
    groups: list[dict[str, Any]] = Field(
        description="`window_start` if asked, the dimensions, and: "
        + "; ".join(f"`{name}`: {meaning}" for name, _, meaning in MEASURES)
    )
    totals: dict[str, Any] = Field(description="the same sums over all groups, those left out included")
    truncated: bool = Field(description="whether there are more groups than sql.max_rows")


async def answer_usage(readers: ReaderPool, query: UsageQuery, form: Form) -> bytes:
    """The body in the asked format. CSV and Arrow hold the groups, JSON the totals too."""
    since, until = _whole_hours(query)
    sql, params = usage_sql(query, since, until, totals=form == "json")
    answer = await readers.query(sql, params, form=form)
    if form != "json":
        return answer.body
    rows = answer.records()
    totals = [row for row in rows if row.pop("is_total")]
    document = {
        "from": since,
        "to": until,
        "window": query.window,
        "group_by": query.keys,
        "groups": rows[len(totals) :] if _is_grouped(query) else totals,
        "totals": _measures_of(totals[0]),
        "truncated": answer.truncated,
    }
    return orjson.dumps(document)


def usage_sql(
    query: UsageQuery, since: str | None, until: str | None, *, totals: bool
) -> tuple[str, list[Any]]:
    """The statement and its parameters. With `totals` the first row is the sum of all, marked `is_total`."""
    window = [f"date_trunc('{query.window}', hour)"] if query.window else []
    keys = [*window, *query.keys]
    columns = [*(f"{expression} AS window_start" for expression in window), *query.keys]
    measures = [f"{expression} AS {name}" for name, expression, _ in MEASURES]
    where, params = query.conditions()
    where += ["hour >= ?::TIMESTAMPTZ"] * bool(since) + ["hour < ?::TIMESTAMPTZ"] * bool(until)
    params += [moment for moment in (since, until) if moment]
    mark = [f"{f'grouping({keys[0]}) = 1' if keys else 'true'} AS is_total"] if totals else []
    groups = f"GROUP BY GROUPING SETS (({', '.join(keys)}){', ()' if totals and keys else ''})"
    order = (
        ["is_total DESC"] * totals
        + ["window_start"] * bool(window)
        + ["list_usd DESC NULLS LAST", *query.keys]
    )
    sql = (
        f"SELECT {', '.join([*mark, *columns, *measures])} FROM usage_hourly"  # only names of ours
        f"{' WHERE ' + ' AND '.join(where) if where else ''} {groups} ORDER BY {', '.join(order)}"
    )
    return sql, params


def _is_grouped(query: UsageQuery) -> bool:
    return bool(query.window or query.keys)


def _measures_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name, _, _ in MEASURES}


def _whole_hours(query: UsageQuery) -> tuple[str | None, str | None]:
    since = _floor(query.since) if query.since else None
    until = _floor(query.until, up=True) if query.until else None
    if since and until and since >= until:
        raise Problem("invalid_request", "`from` must lie before `to`", errors=[{"at": "query.from"}])
    return since, until


def _floor(text: str, *, up: bool = False) -> str:
    moment = datetime.fromisoformat(text)
    whole = moment.replace(minute=0, second=0, microsecond=0)
    return instant((whole + HOUR if up and whole != moment else whole).isoformat())
