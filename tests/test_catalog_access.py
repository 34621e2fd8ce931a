"""Which access, on what evidence: the order of the design, one case for each step and each rule of money."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from catalog.accounts import AccountRule, chosen_rule, fitting_rules
from catalog.catalog import Catalog
from catalog.findings import FINDINGS, access_findings
from catalog.provider_book import load_book
from catalog.resolve import Evidence, Resolver

BOOK = load_book()
RESOLVER = Resolver(BOOK)
CLAUDE = {"request_model": "claude-opus-4-8", "url": "https://api.anthropic.com/v1/messages"}
CODEX = {"request_model": "gpt-5.4", "provider_name": "openai", "emitter": "codex"}
GEMINI = {"request_model": "gemini-2.5-pro", "provider_name": "gcp.gemini", "emitter": "gemini-cli"}


def classify(*rules: AccountRule, **told: object) -> tuple[str, str | None, str]:
    resolver = Resolver(BOOK, rules) if rules else RESOLVER
    if rules:
        account, service = told.pop("account_id", None), told.pop("service", None)
        told["accounts"] = fitting_rules(rules, account_id=account, service=service)  # type: ignore[arg-type]
    access = resolver.resolve(Evidence(**told)).access  # type: ignore[arg-type]
    return access.access, access.plan_id, access.confidence


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # The operator's own attribute, above everything.
        (
            CLAUDE
            | {"access_hint": "payg", "access_evidence": "tollbook.access=payg"}
            | {"markers": "anthropic-ratelimit-unified-status=allowed"},
            ("payg", None, "stated"),
        ),
        # The plan that the record names.
        (CLAUDE | {"plan_hint": "claude-team"}, ("subscription", "claude-team", "stated")),
        (
            CLAUDE
            | {"access_hint": "payg", "access_evidence": "tollbook.access=payg", "plan_hint": "claude-team"},
            ("payg", None, "stated"),
        ),
        # Quota headers of the response.
        (
            CLAUDE | {"markers": "anthropic-ratelimit-unified-5h-utilization=0.05"},
            ("subscription", None, "stated"),
        ),
        (
            CLAUDE
            | {
                "markers": "anthropic-ratelimit-unified-5h-status=allowed;"
                "anthropic-ratelimit-unified-overage-in-use=true"
            },
            ("overage", None, "stated"),
        ),
        (
            CLAUDE | {"markers": "anthropic-ratelimit-unified-representative-claim=overage"},
            ("overage", None, "stated"),
        ),
        (
            CLAUDE | {"markers": "anthropic-ratelimit-unified-overage-status=rejected"},
            ("subscription", None, "stated"),
        ),
        (CODEX | {"markers": "X-Codex-Primary-Used-Percent=12"}, ("subscription", "chatgpt", "stated")),
        # What the agent says, in any spelling; headers of the response beat it.
        (CODEX | {"access_evidence": "auth_mode=Chatgpt"}, ("subscription", "chatgpt", "stated")),
        (CODEX | {"access_evidence": "auth_mode=chat_gpt"}, ("subscription", "chatgpt", "stated")),
        (CODEX | {"access_evidence": "auth_mode=ApiKey"}, ("payg", None, "stated")),
        (CODEX | {"access_evidence": "auth_mode=api_key"}, ("payg", None, "stated")),
        (CODEX | {"access_evidence": "auth_mode=Other"}, ("unknown", None, "none")),
        (
            GEMINI | {"access_evidence": "auth_type=oauth-personal"},
            ("subscription", "google-code-assist", "stated"),
        ),
        (GEMINI | {"access_evidence": "auth_type=gemini-api-key"}, ("payg", None, "stated")),
        (GEMINI | {"access_evidence": "auth_type=cloud-shell"}, ("free", None, "stated")),
        (GEMINI | {"access_evidence": "auth_type=gateway"}, ("unknown", None, "none")),
        (
            CLAUDE | {"access_hint": "subscription", "access_evidence": "anthropic.plan=Max"},
            ("subscription", "claude-max", "stated"),
        ),
        (
            CLAUDE
            | {"access_hint": "subscription", "access_evidence": "anthropic.plan=max"}
            | {"markers": "anthropic-ratelimit-unified-overage-in-use=true"},
            ("overage", None, "stated"),
        ),
        # The address, then the key, then the request.
        (
            {"request_model": "glm-5.2", "url": "https://api.z.ai/api/coding/paas/v4/chat/completions"},
            ("subscription", "zai-coding-plan", "high"),
        ),
        (
            {
                "request_model": "kimi-k2.5",
                "url": "https://api.moonshot.ai/v1",
                "credential_kind": "sk-kimi-",
            },
            ("payg", None, "high"),
        ),
        (CLAUDE | {"credential_kind": "sk-ant-oat"}, ("subscription", None, "high")),
        (CLAUDE | {"credential_kind": "sk-ant-api"}, ("payg", None, "high")),
        (
            {
                "request_model": "MiniMax-M2.5",
                "url": "https://api.minimax.io/v1",
                "credential_kind": "sk-cp-",
            },
            ("subscription", "minimax-coding-plan", "high"),
        ),
        (
            {
                "request_model": "MiniMax-M2.5",
                "url": "https://api.minimax.io/v1",
                "credential_kind": "sk-api-",
            },
            ("payg", None, "high"),
        ),
        (
            {
                "request_model": "claude-opus-4-8",
                "provider_name": "anthropic",
                "credential_kind": "sk-ant-oat01",
            },
            ("subscription", None, "high"),
        ),
        (
            CLAUDE | {"markers": "anthropic-beta=claude-code-20250219,oauth-2025-04-20"},
            ("subscription", None, "stated"),
        ),
        (
            {
                "request_model": "grok-4.3",
                "provider_name": "x_ai",
                "markers": "x-xai-token-auth=xai-grok-cli",
            },
            ("subscription", "supergrok", "stated"),
        ),
        # Qualified ids, and nothing.
        ({"request_model": "zai-coding-plan/glm-5.2"}, ("subscription", "zai-coding-plan", "high")),
        ({"request_model": "mistral/mistral-large-2512"}, ("payg", None, "medium")),
        ({"request_model": "glm-5.2"}, ("unknown", None, "none")),
        (
            {"request_model": "accounts/acme/deployments/x1", "server_address": "api.fireworks.ai"},
            ("provisioned", None, "high"),
        ),
        ({"request_model": "x", "url": "https://pass.wafer.ai/v1"}, ("subscription", "wafer-pass", "high")),
    ],
)
def test_the_order_of_evidence(told: dict[str, object], expected: tuple[str, str | None, str]) -> None:
    assert classify(**told) == expected


def test_headers_of_another_provider_say_nothing() -> None:
    told = {"request_model": "gpt-5.4", "url": "https://api.openai.com/v1"}
    assert classify(**told, markers="anthropic-ratelimit-unified-status=allowed")[0] == "payg"
    assert classify(**told, markers=";;=;" * 500)[0] == "payg"


ANY = AccountRule("subscription", "claude-team", provider="anthropic")
ACCOUNT = AccountRule("subscription", "claude-max", account_id="a1", provider="anthropic")
SERVICE = AccountRule("payg", service="batch-jobs")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"account_id": "a1"}, ("subscription", "claude-max", "configured")),
        ({"account_id": "a2"}, ("subscription", "claude-team", "configured")),
        ({"account_id": "a1", "service": "batch-jobs"}, ("subscription", "claude-max", "configured")),
        ({"account_id": "a2", "service": "batch-jobs"}, ("payg", None, "configured")),
        ({"account_id": "a1", "credential_kind": "sk-ant-api"}, ("payg", None, "high")),
        (
            {"account_id": "a1", "access_hint": "subscription", "access_evidence": "anthropic.plan=pro"},
            ("subscription", "claude-pro", "stated"),
        ),
    ],
)
def test_an_accounts_default_decides_where_the_call_does_not(
    told: dict[str, object], expected: tuple[str, str | None, str]
) -> None:
    assert classify(ANY, ACCOUNT, SERVICE, **CLAUDE, **told) == expected


def test_a_default_never_overrules_what_an_address_or_a_plan_id_says() -> None:
    rule = AccountRule("payg")
    assert classify(rule, request_model="zai-coding-plan/glm-5.2")[0] == "subscription"
    assert (
        classify(rule, request_model="llama3:8b", server_address="localhost", server_port=11434)[0] == "local"
    )
    plan = AccountRule("subscription", "x")
    assert classify(plan, request_model="glm-5", url="https://api.z.ai/api/paas/v4")[0] == "payg"
    assert classify(plan, request_model="llama", url="https://api.groq.com/openai/v1")[0] == "payg"


def test_the_most_exact_rule_is_asked_first() -> None:
    rules = (AccountRule("payg"), ANY, SERVICE, ACCOUNT)
    assert fitting_rules(rules, account_id="a1", service="batch-jobs") == "3,2,1,0"
    assert fitting_rules(rules[1:2], account_id=None, service=None) == "0"
    assert chosen_rule(rules, "3,2,1,0", "openai") is rules[2]
    assert chosen_rule((), None, "openai") is None


def test_rules_reach_a_batch_by_account_and_service(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog.load(tmp_path_factory.getbasetemp() / "prices", accounts=[ACCOUNT, SERVICE])
    calls = pl.DataFrame(
        {
            "provider_name": ["anthropic"] * 4,
            "request_model": ["claude-opus-4-8"] * 4,
            "account_id": ["a1", "a2", "a2", None],
            "service": ["agent", "agent", "batch-jobs", None],
        }
    )
    got = catalog.resolve(calls)
    assert got["access"].to_list() == ["subscription", "payg", "payg", "payg"]
    assert got["access_confidence"].to_list() == ["configured", "high", "configured", "high"]
    assert got["plan_id"].to_list() == ["claude-max", None, None, None]
    assert "accounts" not in got.columns


# Findings.

START = datetime(2026, 11, 15, 12, tzinfo=UTC)


def _calls(*rows: dict[str, object]) -> pl.DataFrame:
    names = ("provider", "access", "session_id", "account_id", "service", "credential_kind")
    told = [
        {name: row.get(name) for name in names} | {"started_at": START + timedelta(minutes=n)}
        for n, row in enumerate(rows)
    ]
    types = dict.fromkeys(names, pl.String) | {"started_at": pl.Datetime("us", "UTC")}
    return pl.DataFrame(told, schema=types)


def test_a_session_that_flips_between_plan_and_key_is_found() -> None:
    one = {"provider": "anthropic", "session_id": "s1"}
    calls = _calls(
        one | {"access": "subscription"},
        one | {"access": "subscription"},
        one | {"access": "payg"},
        {"provider": "anthropic", "session_id": "s2", "access": "subscription"},
        {"provider": "anthropic", "session_id": "s2", "access": "overage"},
        {"provider": "openai", "session_id": "s1", "access": "payg"},
        {"provider": "anthropic", "access": "payg"},
    )
    (found,) = access_findings(calls, BOOK).to_dicts()
    assert (found["finding"], found["subject"], found["calls"]) == ("access_flip", "session s1", 3)
    assert found["detail"] == "2 calls under a plan and 1 metered in one session"
    assert (found["first_at"], found["last_at"]) == (START, START + timedelta(minutes=2))


def test_a_plan_key_on_a_metered_url_is_found() -> None:
    calls = _calls(
        {"provider": "moonshotai", "access": "payg", "credential_kind": "sk-kimi-"},
        {"provider": "moonshotai", "access": "payg", "credential_kind": "sk-"},
        {"provider": "kimi-for-coding", "access": "subscription", "credential_kind": "sk-kimi-"},
    )
    (found,) = access_findings(calls, BOOK).to_dicts()
    assert (found["finding"], found["subject"], found["calls"]) == (
        "plan_key_on_metered_url",
        "key sk-kimi-",
        1,
    )
    assert found["detail"] == "a key of kimi-for-coding was used where moonshotai meters calls"


def test_a_plan_account_on_a_metered_url_is_found() -> None:
    rules = [AccountRule("subscription", "volcengine-coding-plan", account_id="a1")]
    calls = _calls(
        {"provider": "volcengine", "access": "payg", "account_id": "a1"},
        {"provider": "volcengine", "access": "payg", "account_id": "a2"},
        {"provider": "volcengine-coding-plan", "access": "subscription", "account_id": "a1"},
    )
    (found,) = access_findings(calls, BOOK, accounts=rules).to_dicts()
    assert (found["finding"], found["subject"]) == ("plan_account_on_metered_url", "account a1")


def test_nothing_wrong_is_an_empty_table_of_the_same_shape(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog.load(tmp_path_factory.getbasetemp() / "prices")
    empty = catalog.findings(_calls({"provider": "openai", "access": "payg", "session_id": "s"}))
    assert empty.height == 0 and empty.schema == pl.Schema(FINDINGS)
    assert catalog.findings(pl.DataFrame()).height == 0
