"""`python -m bench.catalog`: a million calls resolved, classified and priced, with their time and memory.

The calls mix every labelled id of the corpus with times over two years, tokens, cache, tiers and batches, so
that dates, tiers, schedules and multipliers are all looked up. A sample is explained one by one, and must
cost the same to the last digit. The process runs alone: its peak memory is that of this work.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import polars as pl

from bench import machine
from catalog.accounts import AccountRule
from catalog.catalog import Catalog

CORPUS: Final = Path("fixtures/corpora/model_ids.jsonl")
AIM_S: Final = 5.0
SAMPLE: Final = 500
FIELDS: Final = {
    "gen_ai.provider.name": "provider_name",
    "gen_ai.response.model": "response_model",
    "server.address": "server_address",
    "server.port": "server_port",
    "url.full": "url",
    "service.name": "emitter",
}
RULES: Final = (
    AccountRule("subscription", "claude-max", account_id="account-1", provider="anthropic"),
    AccountRule("payg", service="service-2"),
)

T = TypeVar("T")


def main() -> int:
    """Measure and print; 1 when a bulk price differs from the explained one."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog.load(Path(folder), accounts=RULES)
    calls = traffic(given.calls, seed=given.seed)
    before_mib = _peak_mib()
    resolved, resolve_s = _timed(lambda: catalog.resolve(calls))
    rated, rate_s = _timed(lambda: catalog.rate(resolved))
    figures = {
        "calls": given.calls,
        "distinct evidence": calls.select([*sorted(FIELDS.values()), "request_model"]).unique().height,
        "resolve and classify, s": round(resolve_s, 2),
        "price, s": round(rate_s, 2),
        "all, s": round(resolve_s + rate_s, 2),
        "aim, s": AIM_S * given.calls / 1_000_000,
        "calls per second": round(given.calls / (resolve_s + rate_s)),
        "priced, %": round(100 * (1 - rated["list_cost_usd"].null_count() / given.calls), 1),
        "frame in, MiB": round(calls.estimated_size("mb")),
        "frame out, MiB": round(rated.estimated_size("mb")),
        "peak memory above the start, MiB": round(_peak_mib() - before_mib),
    }
    wrong = differing(catalog, rated)
    _print(figures, as_json=given.json)
    if wrong:
        sys.stderr.write(f"bench: {wrong} of {SAMPLE} sampled prices differ from the explained ones\n")
    return 1 if wrong else 0


def traffic(count: int, *, seed: int) -> pl.DataFrame:
    """Make `count` calls: labelled ids with random times, usage and tiers."""
    chance = random.Random(seed)  # noqa: S311 - test data
    ids = [_evidence(json.loads(line)) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    start, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2025, 2027))
    picks = pl.Series("pick", chance.choices(range(len(ids)), k=count), dtype=pl.Int64)
    frame = pl.DataFrame(ids, infer_schema_length=None).select(pl.all().gather(picks))
    cached = pl.Series([chance.randrange(0, 60_000) for _ in range(count)])
    return frame.with_columns(
        (pl.Series("started_at", [chance.randrange(start, end) for _ in range(count)]) * 1_000_000).cast(
            pl.Datetime("us", "UTC")
        ),
        cached.alias("cache_read_tokens"),
        (cached + pl.Series([chance.randrange(0, 300_000) for _ in range(count)])).alias("input_tokens"),
        pl.Series("output_tokens", [chance.randrange(0, 8_000) for _ in range(count)]),
        pl.Series(
            "service_tier", chance.choices([None, "flex", "priority"], [8, 1, 1], k=count), dtype=pl.String
        ),
        pl.Series("batch", chance.choices([False, True], [9, 1], k=count)),
        pl.Series("region", chance.choices([None, "us"], [9, 1], k=count), dtype=pl.String),
        pl.Series("account_id", [f"account-{chance.randrange(20)}" for _ in range(count)]),
        pl.Series("service", [f"service-{chance.randrange(20)}" for _ in range(count)]),
        pl.lit("ok").alias("status"),
    )


def _evidence(row: dict[str, Any]) -> dict[str, Any]:
    told = {field: row["attributes"].get(key) for key, field in FIELDS.items()}
    return {"request_model": row["model"], **told}


def differing(catalog: Catalog, rated: pl.DataFrame) -> int:
    """Count the sampled calls whose explained cost is another than their bulk cost."""
    sample = rated.filter(pl.col("cost_status") != "free").sample(SAMPLE, seed=1)
    wrong = 0
    for call in sample.iter_rows(named=True):
        told = catalog.explain(call)["list_cost_usd"]
        expected = None if told is None else Decimal(told)
        wrong += call["list_cost_usd"] != expected and call["access"] != "provisioned"
    return wrong


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print(figures: dict[str, Any], *, as_json: bool) -> None:
    about = {**machine.described(Path.cwd()), **machine.versions(), "commit": machine.commit()}
    if as_json:
        sys.stdout.write(json.dumps({"machine": about, "figures": figures}, indent=1) + "\n")
        return
    for name, value in (figures | about).items():
        sys.stdout.write(f"{name:>34}  {value}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.catalog",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
