"""What people and programs ask: batches on the wire, why a price, what differs, what an update changes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

import catalog.compile
from catalog.api_shapes import (
    MAX_ITEMS,
    PriceItem,
    PriceRequest,
    ResolveItem,
    ResolveRequest,
    answer_price,
    answer_resolve,
)
from catalog.compare import compare_tables, compare_with_litellm, nearest_names
from catalog.compile import adopted_source, compile_prices
from catalog.errors import PriceDataError, PriceFileError
from catalog.load import lay_over
from catalog.provider_book import load_book
from catalog.quote import Quotes
from catalog.report import CatalogReport
from tollbook.api import create_app
from tollbook.api_catalog import add_catalog_routes
from tollbook.cli import main

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("fixtures/corpora", name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def quotes(tmp_path_factory: pytest.TempPathFactory) -> Quotes:
    return Quotes.load(tmp_path_factory.getbasetemp() / "prices")


# The corpora, in the shapes of the API.


def test_every_labelled_id_is_answered_in_the_corpus_shape(quotes: Quotes) -> None:
    wrong, wrong_verdict, access = [], [], []
    for row in _rows("model_ids.jsonl"):
        want = row["expect"]
        got = answer_resolve(ResolveItem(model=row["model"], attributes=row["attributes"]), quotes)
        if (got["provider"], _plain(got["model"])) != (want["provider"], _plain(want["canonical_model"])):
            wrong.append(row["id"])
        if want["status"] in ("ambiguous", "unresolved"):
            assert got["provider"] is None and (got["model"] is None) == (want["canonical_model"] is None)
        if want["status"] in ("resolved", "ambiguous", "unresolved") and got["status"] != want["status"]:
            wrong_verdict.append(row["id"])
        if got["access"] != want["access"].replace("plan", "subscription"):
            access.append(row["id"])
    assert len(wrong) <= 2 and not wrong_verdict, (wrong, wrong_verdict)
    assert len(access) <= 6, access


def _plain(model: str | None) -> str | None:
    return "".join(c for c in model.lower() if c.isalnum() or c == "/") if model else None


def test_every_price_case_is_answered_in_the_corpus_shape(quotes: Quotes) -> None:
    for case in _rows("price_cases.jsonl"):
        told = {name: case[name] for name in ("provider", "model", "at", "context", "usage")}
        got = answer_price(PriceItem.model_validate(told), quotes)
        expected = None if case["expected_usd"] is None else Decimal(case["expected_usd"])
        assert _money(got["billed_cost_usd"]) == expected, (case["id"], got)
        if case["group"] == "plan":
            assert got["status"] == "included"
            expected = None if case["api_equivalent_usd"] is None else Decimal(case["api_equivalent_usd"])
        assert _money(got["list_cost_usd"]) == expected, (case["id"], got)
        if expected:
            assert sum(Decimal(line["usd"]) for line in got["lines"]) == expected


def _money(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def test_a_model_is_never_an_echo_and_a_provider_never_a_guess(quotes: Quotes) -> None:
    got = answer_resolve(ResolveItem(model="my-own-model"), quotes)
    assert (got["provider"], got["model"], got["status"]) == (None, None, "unresolved")
    got = answer_resolve(ResolveItem(model="glm-5"), quotes)
    assert (got["provider"], got["model"], got["candidates"][0]) == (None, "zhipuai/glm-5", "zai")


def test_agents_statements_and_the_operators_attribute_reach_the_answer(quotes: Quotes) -> None:
    def ask(**attributes: Any) -> tuple[str, str | None]:
        got = answer_resolve(ResolveItem(model="gpt-5.4", attributes=attributes), quotes)
        return got["access"], got["plan_id"]

    assert ask(**{"gen_ai.provider.name": "openai", "auth_mode": "Chatgpt"}) == ("subscription", "chatgpt")
    assert ask(**{"gen_ai.provider.name": "openai", "auth_mode": "ApiKey"}) == ("payg", None)
    assert ask(**{"auth_mode": "Chatgpt", "tollbook.access": "PAYG"}) == ("payg", None)
    assert ask(**{"gen_ai.provider.name": "openai", "auth_mode": 7, "server.port": True}) == ("payg", None)


@pytest.mark.parametrize(
    ("usage", "context", "status", "billed"),
    [
        ({"input": 1000}, {}, "priced", "0.003000000000"),
        ({"input": 1000}, {"billing": "subscription"}, "included", "0"),
        ({"input": 1000}, {"billing": "plan"}, "included", "0"),
        ({"input": 1000}, {"billing": "unknown"}, "assumed", "0.003000000000"),
        ({"input": 1000}, {"billing": "free"}, "free", "0"),
        ({"input": 1000}, {"billing": "provisioned"}, "provisioned", None),
        ({"input": 1000}, {"billing": "credits"}, "priced", "0.003000000000"),
        ({"reasoning": 1000}, {}, "priced", "0.000000000000"),
    ],
)
def test_the_money_table_for_one_question(
    quotes: Quotes, usage: dict[str, int], context: dict[str, Any], status: str, billed: str | None
) -> None:
    told = {"provider": "anthropic", "model": "claude-sonnet-4-5", "at": "2026-11-15T12:00:00Z"}
    item = PriceItem.model_validate(told | {"usage": usage, "context": context})
    got = answer_price(item, quotes)
    assert (got["status"], got["billed_cost_usd"]) == (status, billed)


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"context": {"moon": "full"}}, "context.moon"),
        ({"context": {"batch": "yes"}}, "context.batch"),
        ({"usage": {"inputs": 1}}, "usage.inputs"),
        ({"usage": {"input": -1}}, "usage.input"),
        ({"usage": {"input": 1.5}}, "usage.input"),
        ({"at": "2026-11-15T12:00:00"}, "at"),
        ({"at": "noon"}, "at"),
        ({"provder": "openai"}, "provder"),
    ],
)
def test_what_a_price_question_may_not_say(changed: dict[str, Any], where: str) -> None:
    told = {"model": "gpt-5", "at": "2026-11-15T12:00:00Z", "usage": {"input": 1}}
    PriceItem.model_validate(told)
    with pytest.raises(ValidationError) as caught:
        PriceItem.model_validate(told | changed)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])).startswith(where)


def test_batches_have_a_limit() -> None:
    with pytest.raises(ValidationError):
        ResolveRequest.model_validate({"items": [{"model": "x"}] * (MAX_ITEMS + 1)})
    item = {"model": "x", "at": "2026-11-15T12:00:00Z", "usage": {}}
    with pytest.raises(ValidationError):
        PriceRequest.model_validate({"items": [item] * (MAX_ITEMS + 1)})


# Over HTTP.


async def _post(app: FastAPI, path: str, body: Any) -> tuple[int, Any]:
    """Send one request through the application, without a socket."""
    sent: list[dict[str, Any]] = []
    content = json.dumps(body).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


async def test_the_routes_answer_batches_in_order(quotes: Quotes) -> None:
    app = create_app(SimpleNamespace(quotes=quotes))  # type: ignore[arg-type]
    items = [{"model": name} for name in ("zai/glm-4.6", "gpt-5", "junk-model") * 10]
    status, reply = await _post(app, "/api/v1/catalog/resolve", {"items": items})
    assert status == 200 and len(reply["items"]) == 30
    assert [i["model"] for i in reply["items"][:3]] == ["zhipuai/glm-4.6", "openai/gpt-5", None]
    item = {"provider": "openai", "model": "gpt-5", "at": "2026-11-15T12:00:00Z", "usage": {"input": 10}}
    status, reply = await _post(app, "/api/v1/catalog/price", {"items": [item]})
    assert status == 200 and reply["items"][0]["list_cost_usd"] == "0.000012500000"
    wrong = {"items": [item, item | {"context": {"moon": "full"}}]}
    status, problem = await _post(app, "/api/v1/catalog/price", wrong)
    assert (status, problem["code"]) == (400, "invalid_request")
    assert problem["errors"] == [{"at": "body.items.1.context.moon", "message": "is not known here"}]
    assert (await _post(app, "/api/v1/catalog/resolve", {"items": []})) == (200, {"items": []})


async def test_before_the_catalogue_is_loaded_it_says_so() -> None:
    app = create_app(SimpleNamespace(quotes=None))  # type: ignore[arg-type]
    status, problem = await _post(app, "/api/v1/catalog/resolve", {"items": [{"model": "gpt-5"}]})
    assert (status, problem["code"]) == (503, "not_ready")


async def test_a_long_batch_lets_others_have_their_turn(quotes: Quotes) -> None:
    app = FastAPI()
    add_catalog_routes(app, SimpleNamespace(quotes=quotes))  # type: ignore[arg-type]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await _post(app, "/api/v1/catalog/resolve", {"items": [{"model": f"gpt-5-{n}"} for n in range(200)]})
    beside.cancel()
    assert turns >= 200 // 8


def test_answering_imports_nothing_heavy() -> None:
    program = (
        "import sys, tollbook.api_catalog, tollbook.cli_catalog; "
        "heavy = {'genai_prices', 'polars', 'duckdb', 'pyarrow', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Comparing and updating.


@pytest.fixture(scope="module")
def base() -> Iterator[Any]:
    yield compile_prices()


def test_tables_differ_where_we_override(base: Any) -> None:
    book = load_book()
    ours = lay_over(base, book)
    found = {(d.model, d.mode, d.part): (d.before, d.after) for d in compare_tables(base, ours, at=NOW)}
    assert found["x-ai/grok-3", "standard", "input"] == ("3", "1.25")
    assert found["mistral/devstral-medium-latest", "standard", "output"] == (None, "2")
    assert ("openai/gpt-5", "standard", "input") not in found
    sunday = datetime(2026, 11, 22, 2, tzinfo=UTC)
    peak = {(d.model, d.part): (d.before, d.after) for d in compare_tables(base, ours, at=sunday)}
    assert peak["deepseek/deepseek-v4-pro", "input"] == ("1.32", "0.66")
    assert not compare_tables(base, base, at=NOW)


def test_litellms_file_is_a_second_opinion(base: Any, tmp_path: Path) -> None:
    rows = {
        "sample_spec": {"litellm_provider": "one of ..."},
        "gpt-5": {
            "litellm_provider": "openai",
            "input_cost_per_token": 1.25e-06,
            "output_cost_per_token": 1.1e-05,
            "mode": "chat",
        },
        "mistral/mistral-large-latest": {"litellm_provider": "mistral", "input_cost_per_token": 5e-07},
        "unknown/model": {"litellm_provider": "nobody", "input_cost_per_token": 1},
    }
    path = tmp_path / "litellm.json"
    path.write_text(json.dumps(rows))
    ours = lay_over(base, load_book())
    (found,) = compare_with_litellm(ours, load_book(), path, at=NOW)
    assert (found.model, found.part, found.before, found.after) == ("openai/gpt-5", "output", "10", "11")
    path.write_text("[]")
    with pytest.raises(PriceDataError, match=r"litellm\.json has no litellm_provider"):
        compare_with_litellm(ours, load_book(), path, at=NOW)


def test_an_unpriced_model_gets_its_nearest_names(base: Any) -> None:
    book = load_book()
    assert nearest_names(base, book, "openai", "gpt-5-nanoo")[0] == "gpt-5-nano"
    assert "claude-opus-4-8" in nearest_names(base, book, None, "claude-opus-4-88")
    assert nearest_names(base, book, "openai", "zzzzqqqq") == []


@pytest.fixture
def report(tmp_path: Path) -> CatalogReport:
    return CatalogReport(tmp_path)


def test_explaining_names_the_row_the_model_and_what_is_near(report: CatalogReport) -> None:
    told = {"provider": "deepseek", "model": "deepseek-v4-pro", "at": "2026-10-08T02:00:00Z"}
    got = report.explain(PriceItem.model_validate(told | {"usage": {"input": 1_000_000}}))
    row = "deepseek/deepseek-v4-pro@2026-08-16T16:00:00Z~china-working-days~01:00#shipped"
    assert (got["priced"]["price_id"], got["near"]) == (row, [])
    assert got["resolved"]["model"] == "deepseek/deepseek-v4-pro"
    told = {"provider": "deepseek", "model": "deepseek-v4-prol", "at": "2026-10-08T02:00:00Z"}
    got = report.explain(PriceItem.model_validate(told | {"usage": {"input": 1}, "model": "deepsek-v4-pro"}))
    assert got["priced"]["list_cost_usd"] is None and got["near"][0] == "deepseek-v4-pro"


def test_updating_adopts_the_installed_source_and_says_what_changes(
    tmp_path: Path, report: CatalogReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.update(at=NOW)["changes"] == []
    table = report.table("source")
    (gpt,) = (m for m in table.models if m.name == "openai/gpt-5-pro")
    dearer = dataclasses.replace(
        gpt,
        rows={
            mode: tuple(dataclasses.replace(r, prices=(99 * 10**9, *r.prices[1:])) for r in rows)
            for mode, rows in gpt.rows.items()
        },
    )
    newer = dataclasses.replace(
        table, source="genai-prices 0.2.99", models=tuple(dearer if m is gpt else m for m in table.models)
    )
    monkeypatch.setattr(catalog.compile, "installed_source", lambda: newer.source)
    monkeypatch.setattr(
        catalog.compile, "_compile_in_child", lambda path: catalog.compile._write(path, newer)
    )
    assert adopted_source(tmp_path) == table.source
    assert [r["after"] for r in report.diff("source", "installed", at=NOW) if r["mode"] == "standard"] == [
        "99"
    ]
    done = report.update(at=NOW)
    assert (done["before"], done["after"]) == (table.source, newer.source)
    assert {row["model"] for row in done["changes"]} == {"openai/gpt-5-pro"}
    assert adopted_source(tmp_path) == newer.source


def test_an_update_that_breaks_the_operators_file_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = tmp_path / "mine.toml"
    overlay.write_text(
        '[[redirect]]\nprice_list = "openai"\nids = ["a"]\nbilled_as = "gpt-5-pro"\n'
        'source = "contract"\nchecked = 2026-11-22\n'
    )
    report = CatalogReport(tmp_path / "cache", overlay=overlay)
    table = report.table("source")
    fewer = tuple(m for m in table.models if m.name != "openai/gpt-5-pro")
    newer = dataclasses.replace(table, source="genai-prices 0.2.99", models=fewer)
    monkeypatch.setattr(catalog.compile, "installed_source", lambda: newer.source)
    monkeypatch.setattr(
        catalog.compile, "_compile_in_child", lambda path: catalog.compile._write(path, newer)
    )
    with pytest.raises(
        PriceFileError, match=r"mine\.toml:1: redirect\[0\]: gpt-5-pro has no price on openai"
    ):
        report.update(at=NOW)
    assert adopted_source(tmp_path / "cache") == table.source


def test_the_state_of_the_catalogue_is_told(report: CatalogReport) -> None:
    told = report.status()
    assert told["adopted"] == told["installed"] and told["providers"] >= 190
    with pytest.raises(PriceDataError, match="name source, installed or ours"):
        report.table("other")


# The command line.


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_price_explain_prints_the_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["price", "explain", "claude-opus-4-8", "--provider", "anthropic", "--data-dir", str(tmp_path)]
    code, out, _ = _run(
        *(capsys, *asked, "--input", "1000", "--output", "500", "--inference-geo", "us", "--at", "2026-11-15")
    )
    assert code == 0
    assert "input" in out and "1000 x        5.5 = 0.0055 USD" in out
    assert "list 0.019250000000 USD, billed 0.019250000000 (priced)" in out
    assert "anthropic/claude-opus-4-8@1970-01-01*us-inference" in out
    code, out, _ = _run(capsys, *asked, "--input", "10", "--billing", "subscription", "--json")
    assert code == 0 and json.loads(out)["priced"]["billed_cost_usd"] == "0"


def test_price_explain_of_an_unknown_model_fails_and_names_what_is_near(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("price", "explain", "gpt-5-nanoo", "--provider", "openai", "--input", "1")
    code, out, _ = _run(capsys, *asked, "--data-dir", str(tmp_path))
    assert code == 1 and "no price" in out and "gpt-5-nano" in out
    code, _, err = _run(capsys, *asked[:3], "--billing", "nonsense", "--data-dir", str(tmp_path))
    assert code == 1 and "context.billing" in err and "nonsense" not in err


def test_catalog_commands_say_what_is_in_use_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ("--data-dir", str(tmp_path))
    code, out, _ = _run(capsys, "catalog", "status", *folder)
    assert code == 0 and "adopted  genai-prices" in out
    code, out, _ = _run(capsys, "catalog", "diff", "--at", "2026-11-20", "--json", *folder)
    rows = json.loads(out)["differences"]
    assert code == 0 and {"x-ai/grok-3", "mistral/mistral-large-latest"} <= {row["model"] for row in rows}
    code, out, _ = _run(capsys, "catalog", "update", *folder)
    assert code == 0 and "no price differs" in out and "is in use already" in out
    code, out, _ = _run(capsys, "catalog", "resolve", "gpt-5.4", "-a", "auth_mode=Chatgpt", "--json")
    assert code == 0 and json.loads(out)["access"] == "subscription"
    overlay = tmp_path / "mine.toml"
    overlay.write_text('[[price]]\nprice_list = "openai"\n')
    code, _, err = _run(capsys, "catalog", "status", "--overlay", str(overlay), *folder)
    assert code == 1 and "tollbook: mine.toml:1: price[0].source: Field required" in err
