"""Failures as providers dress them come to one kind, and reach callers in their dialect without secrets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.failure import _LOOKED_AT_CHARACTERS, Failure, FailureKind, classify, failure, render, render_event
from proxy.sse import EventReader
from proxy.wire import WireFormat

NOW = datetime(2026, 9, 8, 20, 0, tzinfo=UTC)
CHAT, RESPONSES, EMBEDDINGS, MESSAGES, GOOGLE = WireFormat


def error(**told: Any) -> dict[str, Any]:
    return {"error": told}


def classified(
    provider: str | None, status: int, body: Any, headers: dict[str, str] | None = None
) -> Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(provider, status, headers or {}, raw, now=NOW)


QUOTA = "You exceeded your current quota, please check your plan and billing details."
DRESSED = [
    (
        "zai-coding-plan",
        429,
        error(code="1113", message="Insufficient balance or no resource package."),
        "billing",
    ),
    ("zai", 429, {"type": "error", **error(type="1113", message="Please recharge.")}, "billing"),
    ("zai", 429, error(type="rate_limit_error", code="1113", message="[1113][...]"), "billing"),
    ("zai", 429, error(type="rate_limit_error", message="[1113][x][20260922]"), "billing"),
    ("zai", 429, error(code="1302", message="too fast"), "rate_limit"),
    ("zai", 429, error(code="1308", message="Usage limit reached for 5 hour."), "plan_limit"),
    ("openai", 429, error(code="1113", message="no code of theirs"), "rate_limit"),
    ("openai", 429, error(type="insufficient_quota", code="insufficient_quota", message=QUOTA), "billing"),
    ("alibaba-coding-plan", 429, error(code="insufficient_quota", message=QUOTA), "rate_limit"),
    ("google", 429, error(code=429, status="RESOURCE_EXHAUSTED", message=QUOTA), "rate_limit"),
    (
        "openai",
        429,
        error(type="usage_limit_reached", message="The usage limit has been reached"),
        "plan_limit",
    ),
    (
        "minimax",
        429,
        error(type="rate_limit_error", message="usage limit exceeded, 5-hour usage limit reached (2056)"),
        "plan_limit",
    ),
    (
        "minimax-cn",
        200,
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        "billing",
    ),
    ("ollama-cloud", 429, error(message="you have reached your weekly usage limit"), "plan_limit"),
    (
        "opencode",
        401,
        {"type": "error", **error(type="CreditsError", message="Insufficient balance")},
        "billing",
    ),
    ("xai", 403, error(message="Your team has used all available credits"), "billing"),
    (
        "anthropic",
        400,
        error(type="invalid_request_error", message="Your credit balance is too low"),
        "billing",
    ),
    ("anthropic", 400, error(type="invalid_request_error", message="You're out of extra usage."), "billing"),
    (
        "openai",
        400,
        error(type="invalid_request_error", message="You're out of extra usage."),
        "invalid_request",
    ),
    (
        "anthropic",
        400,
        error(type="invalid_request_error", message="prompt is too long: 9 > 8"),
        "context_length",
    ),
    ("openai", 400, error(code="context_length_exceeded", message="x"), "context_length"),
    ("groq", 400, error(message="Field input.name is too long"), "invalid_request"),
    ("groq", 400, error(message="You hit your tokens limit"), "invalid_request"),
    ("anthropic", 529, error(type="overloaded_error", message="Overloaded"), "overloaded"),
    (
        "anthropic",
        200,
        {"type": "error", **error(type="overloaded_error", message="Overloaded")},
        "overloaded",
    ),
    ("moonshotai", 429, error(type="engine_overloaded_error", message="busy"), "overloaded"),
    ("moonshotai", 429, error(type="exceeded_current_quota_error", message="suspended"), "billing"),
    (
        "kimi-for-coding",
        403,
        error(type="access_terminated_error", message="coding agents only"),
        "permission",
    ),
    ("google", 400, error(code=400, status="INVALID_ARGUMENT", message="API key not valid."), "auth"),
    (
        "openrouter",
        200,
        {**error(code=429, message="x"), "choices": [{"finish_reason": "error"}]},
        "rate_limit",
    ),
    (
        "openai",
        200,
        {"type": "response.failed", "response": error(code="server_error", message="x")},
        "server_error",
    ),
    ("deepseek", 402, error(message="Insufficient Balance"), "billing"),
    (None, 404, b"<!DOCTYPE html>context_length_exceeded", "not_found"),
    (None, 451, b"", "client_error"),
    (None, 504, b"", "timeout"),
    (None, 302, b"", "server_error"),
]


@pytest.mark.parametrize(("provider", "status", "body", "kind"), DRESSED)
def test_what_providers_tell_comes_to_one_kind(
    provider: str | None, status: int, body: Any, kind: str
) -> None:
    found = classified(provider, status, body)
    assert found.kind == kind
    assert found.status == status or status < 400 <= found.status


@pytest.mark.parametrize(
    ("headers", "body", "provider", "seconds"),
    [
        ({"retry-after": "17"}, b"", None, 17),
        ({"retry-after-ms": "1500", "retry-after": "2"}, b"", None, 1.5),
        ({"retry-after": "Tue, 08 Sep 2026 20:01:00 GMT"}, b"", None, 60),
        ({"retry-after": "Tue, 08 Sep 2026 19:00:00 GMT"}, b"", None, 0),
        ({"retry-after": "soon"}, b"", None, None),
        ({"retry-after": "1" * 12}, b"", None, 32 * 86_400),
        ({}, error(resets_in_seconds=13872, message=""), "openai", 13872),
        ({}, error(resets_at=NOW.timestamp() + 5, message=""), "openai", 5),
        ({}, error(details=[{"@type": "x.RetryInfo", "retryDelay": "34.07s"}], message="x"), "google", 34.07),
        ({}, error(message="Please try again in 6m0s."), "openai", 360),
        ({}, error(message="Please try again in 850ms. Visit"), "groq", 0.85),
        ({}, error(message="Please retry after 20 seconds."), "azure", 20),
        ({}, error(message="Your limit will reset at 2026-09-09 05:38:28"), "zai", 5908),  # Beijing's time
        ({}, error(message="limit resets at 2026-09-08T20:00:09Z"), "x", 9),
        ({}, error(message="no hint"), "x", None),
    ],
)
def test_how_long_to_wait(
    headers: dict[str, str], body: Any, provider: str | None, seconds: float | None
) -> None:
    assert classified(provider, 429, body, headers).retry_after_s == pytest.approx(seconds)


def test_messages_leak_no_keys_no_inner_addresses_and_no_pages() -> None:
    message = (
        "connect http://u:pw@10.0.0.3:8080/v1 and http://[::1]:99 via http://llama:1/x with sk-abcdefghijklmn"
    )
    found = classified("x", 500, error(message=message))
    assert (
        found.message
        == "connect [internal address] and [internal address] via [internal address] with [REDACTED]"
    )
    page = classified("x", 404, b"<html><p>https://inner.local sk-abcdefghijklmn</p>")
    assert page.message == "the provider answered 404 (not found)"
    assert classified("x", 404, error(message="<!-- edge --><html>")).message == page.message
    assert len(classified("x", 400, error(message="long " * 1000)).message) == 500


def test_a_key_that_a_long_message_is_cut_in_shows_no_half() -> None:
    """What is looked at ends in the key; so much before it is taken out that the key's head would be read."""
    key = "sk-" + "a1B2c3D4" * 40
    for place in range(_LOOKED_AT_CHARACTERS - 12, _LOOKED_AT_CHARACTERS):
        before = " ".join([key] * (place // (len(key) + 1)))
        text = f"{before:<{place}}".replace("  ", " x") + key
        message = classified("openai", 401, error(message=text)).message
        assert message.startswith("[REDACTED] [REDACTED]") and "a1B2" not in message, message


@pytest.mark.parametrize(
    ("wire_format", "expected"),
    [
        (CHAT, {"error": {"message": "m", "type": "insufficient_quota", "param": None, "code": "billing"}}),
        (
            RESPONSES,
            {"error": {"message": "m", "type": "insufficient_quota", "param": None, "code": "billing"}},
        ),
        (MESSAGES, {"type": "error", "error": {"type": "billing_error", "message": "m"}}),
    ],
)
def test_callers_are_told_in_their_dialect(wire_format: WireFormat, expected: dict[str, Any]) -> None:
    status, headers, body = render(Failure(FailureKind.BILLING, "m", 429), wire_format)
    assert (status, json.loads(body)) == (429, expected)
    assert headers == {"content-type": "application/json", "x-should-retry": "false"}


def test_google_is_told_when_to_come_back() -> None:
    status, headers, body = render(Failure(FailureKind.RATE_LIMIT, "m", 429, 33.2), GOOGLE)
    told = json.loads(body)["error"]
    assert (status, told["code"], told["status"]) == (429, 429, "RESOURCE_EXHAUSTED")
    assert told["details"][1]["retryDelay"] == "34s"
    assert headers["retry-after"] == "34" and "x-should-retry" not in headers


def test_a_budget_that_is_spent_says_so_and_keeps_clients_from_retrying() -> None:
    found = failure(
        FailureKind.BUDGET_EXCEEDED, "budget team-a is spent; it resets in 2 h", retry_after_s=7200
    )
    for wire_format in WireFormat:
        status, headers, body = render(found, wire_format)
        assert (status, headers["retry-after"], headers["x-should-retry"]) == (429, "7200", "false")
        assert b"team-a" in body
    assert all(
        json.loads(render(found, wire_format)[2])["error"]["code"] == "budget_exceeded"
        for wire_format in (CHAT, RESPONSES, EMBEDDINGS, MESSAGES)
    )
    assert b"BUDGET_EXCEEDED" in render(found, GOOGLE)[2]


def test_an_error_ends_a_stream_as_its_format_has_it() -> None:
    found = failure(FailureKind.OVERLOADED, "busy")
    told = {f: EventReader().feed(render_event(found, f, sequence_number=4))[0] for f in WireFormat}
    assert (told[MESSAGES].name, json.loads(told[MESSAGES].data)["error"]["type"]) == (
        b"error",
        "overloaded_error",
    )
    assert json.loads(told[RESPONSES].data) == {
        "type": "error", "sequence_number": 4, "code": "overloaded", "message": "busy", "param": None,
        "error": {"type": "server_error", "code": "overloaded", "message": "busy", "param": None},
    }  # fmt: skip
    failed = EventReader().feed(render_event(found, RESPONSES))[1]
    assert json.loads(failed.data)["response"]["error"] == {"code": "overloaded", "message": "busy"}
    assert json.loads(told[CHAT].data)["error"]["message"] == "busy"
    assert json.loads(told[GOOGLE].data)["error"]["status"] == "UNAVAILABLE"


def test_every_kind_can_be_told_in_every_dialect() -> None:
    for kind in FailureKind:
        for wire_format in WireFormat:
            status, _, body = render(failure(kind, "m"), wire_format)
            assert 400 <= status < 600 and json.loads(body)


_BODIES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(["error", "code", "type", "message", "details", "metadata", "base_resp", "choices",
                         "retryDelay", "resets_at", "status", "errors", "response", "retry_after"]),
        inner, max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from([None, "zai", "google"]), st.integers(100, 599), _BODIES, st.text(max_size=12))
def test_no_answer_is_too_strange_to_classify(
    provider: str | None, status: int, body: Any, wait: str
) -> None:
    found = classified(provider, status, body, {"retry-after": wait})
    assert 400 <= found.status < 600
    assert found.retry_after_s is None or found.retry_after_s >= 0
