"""Definitions and checks as they come in: strict, with sentences that help, and durable as control
records.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.budget import (
    BudgetEvent,
    BudgetFigures,
    ControlError,
    DeleteBudget,
    InvalidBudget,
    PutBudget,
    RecordEvent,
    Scope,
    decimal_text,
    decode_control,
    encode_control,
    read_budget,
    read_check,
)


def _budget(**fields: object) -> bytes:
    return json.dumps({"limit": "1.00", "period": "day", **fields}).encode()


def test_defaults_and_echo() -> None:
    budget = read_budget(_budget(scope={"team": "a", "labels": {"customer": "x"}}))
    told = json.loads(budget.model_dump_json())
    assert told.pop("id").startswith("bud_")
    assert told == {
        "scope": {"team": "a", "labels": {"customer": "x"}},
        "meter": "billed_usd",
        "limit": "1.00",
        "period": "day",
        "time_zone": "UTC",
        "thresholds": [{"at": "1.0", "action": "deny"}],
        "on_unpriced": "deny",
        "per_call": None,
        "shadow": False,
        "origin": "api",
    }


def test_generated_ids_differ() -> None:
    assert read_budget(_budget()).id != read_budget(_budget()).id


def test_no_thresholds_denies_at_the_limit() -> None:
    assert [each.action for each in read_budget(_budget(thresholds=[])).thresholds] == ["deny"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"nope", "Invalid JSON"),
        (b"[]", "object"),
        (b"{}", "limit: Field required"),
        (_budget(limit=1.0), 'limit: must be a decimal string such as "1.00"'),
        (_budget(limit=1), "limit: must be a decimal string"),
        (_budget(limit="1e3"), "limit: must be a decimal string"),
        (_budget(limit="NaN"), "limit: must be a decimal string"),
        (_budget(limit="-1"), "limit: must be a decimal string"),
        (_budget(limit="0.0000000000001"), "at most 12 decimal places"),
        (_budget(limit="0"), "limit: must be greater than 0"),
        (_budget(limit="1.5", meter="tokens"), "limit: must be a whole number for the meter tokens"),
        (_budget(meter="usd"), "meter: Input should be 'billed_usd', 'list_usd', 'tokens' or 'calls'"),
        (_budget(period="daily"), "period: must be minute, hour, day, week, month, total, rolling:<n>m|h|d"),
        (
            _budget(time_zone="Europe/Berln"),
            "time_zone: must be an IANA time zone; did you mean Europe/Berlin?",
        ),
        (_budget(tim_zone="UTC"), "tim_zone: unknown key; did you mean time_zone?"),
        (_budget(scope={"tem": "a"}), "scope.tem: unknown key; did you mean team? allowed are team, project"),
        (_budget(scope={"access": "plan"}), "scope.access: Input should be 'payg', 'subscription'"),
        (_budget(scope={"team": ""}), "scope.team: String should have at least 1 character"),
        (_budget(scope={"labels": {"a": 1}}), "scope.labels.a: Input should be a valid string"),
        (_budget(thresholds=[{"at": 0.8, "action": "warn"}]), "thresholds.0.at: must be a decimal string"),
        (_budget(thresholds=[{"at": "0.8", "acton": "warn"}]), "did you mean action?"),
        (
            _budget(thresholds=[{"at": "1", "action": "deny"}] * 2),
            "thresholds: names the same fraction and action",
        ),
        (_budget(id="../x"), "id: String should match pattern"),
        (_budget(on_unpriced="ignore"), "on_unpriced: Input should be 'deny', 'allow' or 'dearest'"),
    ],
)
def test_refused_with_a_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        read_budget(body)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"estimate": {}}, "estimate: must hold usd, or input_tokens and output_tokens"),
        ({"estimate": {"usd": 0.5}}, "estimate.usd: must be a decimal string"),
        ({"estimate": {"usd": "-0.5"}}, "estimate.usd: must be a decimal string"),
        ({"estimate": {"input_tokens": -1}}, "estimate.input_tokens: "),
        ({"estimate": {"input_tokens": "12"}}, "estimate.input_tokens: Input should be a valid integer"),
        ({"estimate": {"tokens": 1}}, "estimate.tokens: unknown key"),
        ({"reserve": "yes"}, "reserve: Input should be a valid boolean"),
        ({"trace_id": "xyz"}, "trace_id: "),
        ({"team": "a"}, "team: unknown key; allowed are scope, model"),
    ],
)
def test_checks_are_strict_too(body: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidBudget) as caught:
        read_check(json.dumps(body).encode())
    assert sentence in str(caught.value)


def test_every_wrong_place_is_named_and_no_value() -> None:
    secret = "sk-ant-api03-pasted-by-mistake"
    with pytest.raises(InvalidBudget) as caught:
        read_budget(_budget(limit=secret, meter=secret, time_zone=secret, period=secret, id=secret + "!"))
    assert len(caught.value.sentences) == 5
    assert secret not in repr(caught.value) + str(caught.value.__cause__)


def test_put_takes_the_id_of_the_path() -> None:
    assert read_budget(_budget(), budget_id="team-a").id == "team-a"
    assert read_budget(_budget(id="team-a"), budget_id="team-a").id == "team-a"
    with pytest.raises(InvalidBudget, match="id in the path"):
        read_budget(_budget(id="other"), budget_id="team-a")


def test_attributes_tell_dimensions_and_the_scope_wins() -> None:
    attributes = {
        "tollbook.team": "from-tollbook",
        "team.id": "from-team-id",
        "service.name": "svc",
        "tollbook.label.customer": "x",
        "http.port": 80,
    }
    request = read_check(
        json.dumps({"scope": {"agent": "scoped"}, "attributes": attributes, "model": "m"}).encode()
    )
    assert request.dimensions() == {
        "agent": "scoped",
        "team": "from-tollbook",
        "labels.customer": "x",
        "model": "m",
    }


def test_control_records_round_trip() -> None:
    budget = read_budget(_budget(scope={"team": "ä"}, limit="0.000000000001"))
    figures = BudgetFigures(
        id="b",
        meter="tokens",
        limit="5",
        period="day",
        spent=None,
        reserved="0",
        remaining=None,
        resets_at=datetime(2026, 11, 23, tzinfo=UTC),
    )
    event = BudgetEvent(
        at=datetime(2026, 11, 22, 8, tzinfo=UTC),
        source="check",
        decision="deny",
        reason="why",
        scope=Scope(team="a"),
        budgets=[figures],
    )
    assert decode_control(encode_control("put", budget=budget)) == PutBudget(budget=budget)
    assert decode_control(encode_control("delete", budget_id="b")) == DeleteBudget(budget_id="b")
    assert decode_control(encode_control("event", event=event)) == RecordEvent(event=event)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"v":2,"op":"delete","budget_id":"b"}',
        b'{"v":1,"op":"rob"}',
        b'{"v":1,"op":"put"}',
    ],
)
def test_unreadable_control_records_are_faults_with_a_code(body: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        decode_control(body)
    assert caught.value.code == "control_unreadable"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("1.500000000000", "1.5"),
        ("100", "100"),
        ("1E+3", "1000"),
        ("-0.000", "0"),
        ("1E-12", "0.000000000001"),
    ],
)
def test_decimal_text(amount: str, text: str) -> None:
    assert decimal_text(Decimal(amount)) == text


def test_the_front_side_loads_nothing_heavy() -> None:
    heavy = "'polars', 'duckdb', 'pyarrow', 'numpy', 'genai_prices'"
    code = f"import sys, billing.budget_book; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
