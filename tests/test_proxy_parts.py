"""The proxy's parts by themselves: keys at rest, calls on their way, edits, records, doors, routes."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError

from billing.plan_advice import windows_told
from billing.reservation_desk import ReservationDesk
from catalog.endpoints import Endpoint
from catalog.quote import Quotes
from ingest.call_report import attributes, begun, encode, opened
from ingest.journal import Journal, read_frames
from proxy.allowance import Allowance
from proxy.catalogue import SIGNED, SPOKEN, Catalogue
from proxy.choice import Chooser
from proxy.connection import Broken, Connection, Timeouts, TooSlow, Unreachable
from proxy.doors import Door, DoorSettings
from proxy.edits import with_model, with_stream_usage
from proxy.exchange import Attempt, CallHead, CredentialKind, Exchange, Outcome, Way
from proxy.failure import FailureKind, failure
from proxy.health import Health
from proxy.inflight import PAGE_BYTES, InFlight, TooManyInFlight
from proxy.outgoing import outgoing
from proxy.plan import Planner
from proxy.recorder import Recorder
from proxy.refusal import Refused
from proxy.report import record_of
from proxy.route_files import RouteFiles, RoutesFileError
from proxy.routes import Route, RouteTable, When
from proxy.secret import Secret
from proxy.upstream import Upstream
from proxy.usage import Told
from proxy.vault import Entry, Vault, VaultError
from proxy.wire import WireFormat, operation_of, said
from tests.model_server import model_server

PATHS = {
    WireFormat.OPENAI_CHAT: "/v1/chat/completions",
    WireFormat.OPENAI_RESPONSES: "/v1/responses",
    WireFormat.OPENAI_EMBEDDINGS: "/v1/embeddings",
    WireFormat.ANTHROPIC_MESSAGES: "/v1/messages",
    WireFormat.GOOGLE_GENERATE: "/v1beta/models/some-model:generateContent",
}


def exchange(model: str, path: str = "/v1/chat/completions", **headers: str) -> Exchange:
    operation = operation_of(path)
    assert operation is not None
    request: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Exchange(
        head=CallHead(operation, path, b"", told),
        said=said(operation, request),
        body=json.dumps(request).encode(),
        request=request,
    )


# --- the vault ---


def test_a_key_is_sealed_at_rest_and_opens_again(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.add(Entry("openai", "payg"), Secret("sk-proj-very-secret"))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"vault.json", "vault.key"}
    assert not any(b"very-secret" in body for body in files.values())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    again = Vault(tmp_path)
    entry = again.find("openai")
    assert entry is not None and again.reveal(entry).reveal() == "sk-proj-very-secret"
    assert "very-secret" not in f"{entry!r} {again.reveal(entry)!r} {again.reveal(entry)}"


def test_a_sealed_key_does_not_open_in_another_place(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    vault.add(Entry("openai", "payg"), Secret("sk-proj-x"))
    path = tmp_path / "vault.json"
    path.write_text(path.read_text().replace('"openai"', '"zai"'))
    moved = Vault(tmp_path).find("zai")
    assert moved is not None
    with pytest.raises(VaultError, match="another"):
        Vault(tmp_path).reveal(moved)


def test_a_vault_without_its_key_or_with_a_readable_one_says_so(tmp_path: Path) -> None:
    Vault(tmp_path).add(Entry("openai", "payg"), Secret("sk-proj-x"))
    entry = Vault(tmp_path).entries()[0]
    (tmp_path / "vault.key").chmod(0o644)
    with pytest.raises(VaultError, match="chmod 600"):
        Vault(tmp_path).reveal(entry)
    (tmp_path / "vault.key").unlink()
    for use in (lambda vault: vault.reveal(entry), lambda vault: vault.add(entry, Secret("sk-new"))):
        with pytest.raises(VaultError, match="missing"):
            use(Vault(tmp_path))


def test_a_key_from_the_environment_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(tmp_path)
    vault.add(Entry("openai", "payg", env="SOME_KEY"))
    entry = vault.entries()[0]
    with pytest.raises(VaultError, match="SOME_KEY is not set"):
        vault.reveal(entry)
    monkeypatch.setenv("SOME_KEY", "sk-proj-env")
    assert vault.reveal(entry).reveal() == "sk-proj-env"
    assert (vault.remove("openai"), vault.remove("openai"), vault.entries()) == (1, 0, ())


# --- calls on their way ---


async def test_what_was_on_its_way_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "proxy" / "in-flight"
    first = InFlight(path, slots=5)
    slots = [first.put(body) for body in (b"one", b"two" * 1000, b"three", b"four", b"five")]
    with pytest.raises(TooManyInFlight):
        first.put(b"six")
    first.keep(slots[1], b"two, and what came of it")
    first.clear(slots[1])
    first.keep(slots[0], b"one, and what came of it")
    first.keep(slots[3], b"four, and what came of it")
    assert first.taken == 4
    _tear(path, page=2 * slots[2])
    _tear(path, page=2 * slots[3] + 1)
    second = InFlight(path, slots=5)
    left = {slots[0]: b"one, and what came of it", slots[3]: b"four", slots[4]: b"five"}
    assert second.interrupted == left, "a torn record is none"
    assert not {second.put(b"new"), second.put(b"new")} & left.keys()


async def test_whatever_a_caller_says_of_itself_fits_a_page(catalogue: Catalogue, tmp_path: Path) -> None:
    """Everything at its longest; what a provider tells beyond that waits for the journal."""
    long = "\N{EURO SIGN}" * 42
    names = ("team", "project", "environment", "agent", "user", "account", "session")
    told = {f"x_tollbook_{name}": long for name in names}
    told |= {f"x_tollbook_label_{number}{'n' * 80}": long for number in range(20)}
    told |= {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "authorization": "Bearer sk-proj-mine"}
    calling = exchange("openai/" + "\N{EURO SIGN}" * 500, **told)
    target = Chooser(catalogue, Vault(tmp_path), DoorSettings()).choose(calling)
    attempt = Attempt(target, Way(target), fallback_from="f" * 5000, reservation_id="r" * 64)
    calling.route = "r" * 64
    inflight = InFlight(tmp_path / "in-flight", slots=1)
    slot = inflight.put(record_of(calling, attempt))
    words = dict.fromkeys(("response_id", "response_model", "service_tier", "region"), "€" * 200)
    attempt.told, attempt.status = Told(**words), 200
    attempt.headers = {"x-request-id": "i" * 9000, **{f"x-codex-{n}": "9" * 100 for n in range(50)}}
    inflight.keep(slot, record_of(calling, attempt))
    inflight.keep(slot, b"more than a page" * 1000)
    inflight.close()
    assert InFlight(tmp_path / "in-flight", slots=1).interrupted[slot]


def _tear(path: Path, *, page: int) -> None:
    """As if the machine had failed in the middle of writing a page."""
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES + 10)
        file.write(b"X")


# --- edits ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON, st.text(max_size=12), st.sampled_from(["gpt-5", 'a"b', "x\\y", "é", ""]))
def test_a_model_is_renamed_and_nothing_else(before: Any, after: Any, new: str, old: str) -> None:
    """Byte by byte, also where the same words stand elsewhere and odd ways to write them."""
    head = f'{{ "a":{json.dumps(before)} ,"n":1.00, "model" :\t'.encode()
    tail = f', "tools": [{json.dumps({"model": old})}],"z": {json.dumps(after)}\n}}'.encode()
    body = head + json.dumps(old).encode() + tail
    assert with_model(body, json.loads(body), new) == head + orjson.dumps(new) + tail


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ('{"a": 1.0}', '{"stream_options":{"include_usage":true},"a": 1.0}'),
        (" { }", ' {"stream_options":{"include_usage":true} }'),
        ('{"stream_options": {"x": 1}}', '{"stream_options": {"include_usage":true,"x": 1}}'),
    ],
)
def test_usage_is_asked_for_in_the_smallest_way(body: str, changed: str) -> None:
    assert with_stream_usage(body.encode(), json.loads(body)).decode() == changed


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {}])
def test_usage_is_asked_for_whatever_was_said(options: Any) -> None:
    request = {"b": [1], "stream_options": options}
    changed = json.loads(with_stream_usage(json.dumps(request).encode(), request))
    assert changed == {"b": [1], "stream_options": {"include_usage": True}}


# --- records ---


def test_a_span_written_by_hand_reads_as_the_generated_classes_write_it() -> None:
    values = {
        "text": "é" * 200,
        "zero": 0,
        "large": 2**60,
        "negative": -5,
        "real": 0.25,
        "no": None,
        "yes": True,
    }
    begin = begun(b"t" * 16, b"s" * 8, b"p" * 8, start_ns=10**18) + opened("chat gpt-5")
    one = encode(begin, attributes(values), end_ns=10**18 + 5, failed=True)
    several = ExportTraceServiceRequest.FromString(one + encode(begin, end_ns=10**18) + one)
    assert [len(each.scope_spans[0].spans[0].attributes) for each in several.resource_spans] == [6, 0, 6]
    read = several.resource_spans[0].scope_spans[0]
    [told] = read.spans
    found = {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in told.attributes}
    assert found == {name: value for name, value in values.items() if value is not None}
    assert (told.trace_id, told.span_id, told.parent_span_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert (told.start_time_unix_nano, told.end_time_unix_nano) == (10**18, 10**18 + 5)
    assert (read.scope.name, told.name, told.status.code, told.kind) == ("tollbook.proxy", "chat gpt-5", 2, 3)


# --- doors ---


@cache
def quotes() -> Quotes:
    return Quotes.load()


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(quotes())


def _doors() -> Iterator[Endpoint]:
    book = Catalogue(quotes())
    for provider in book.book.providers:
        yield from book.endpoints.find(provider)


def test_every_door_of_the_catalogue_is_reached_with_the_key_kept_for_it(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """Provider by provider, access by access, dialect by dialect: the address, and whose key is shown."""
    vault = Vault(tmp_path)
    reached = 0
    for endpoint in _doors():
        spoken = SPOKEN.get(endpoint.format)
        if spoken is None or endpoint.auth in (*SIGNED, "none"):
            continue
        entry = Entry(endpoint.provider, endpoint.access, env="DOOR_KEY")
        told = exchange("some-model", PATHS[spoken], authorization="Bearer sk-mine", user_agent="agent/1")
        vault.add(entry)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("DOOR_KEY", "ours")
            provider = catalogue.book.providers[endpoint.provider]
            chosen = Chooser(catalogue, vault, _variables(endpoint)).target(
                *(told, provider, "some-model"), access=endpoint.access, credential=CredentialKind.VAULT
            )
            sent = outgoing(told, Way(chosen))
        vault.remove(endpoint.provider)
        assert (chosen.access, chosen.endpoint.format) == (endpoint.access, endpoint.format)
        headers = [(name.decode(), value.decode()) for name, value in sent.headers]
        shown = [name for name, value in headers if "ours" in value]
        assert shown == [name for name, _ in endpoint.auth_headers("ours").items()], endpoint
        assert not any("sk-mine" in value for _, value in headers)
        assert dict(headers)["user-agent"] == "agent/1"
        assert {name: dict(headers)[name] for name, _ in endpoint.headers} == dict(endpoint.headers)
        assert sent.url.startswith(("https://", "http://")) and "{" not in sent.url
        reached += 1
    assert reached > 100


def test_nothing_of_a_call_that_is_printed_shows_a_key_or_content(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    calling = exchange("openai/gpt-5", authorization="Bearer sk-proj-mine", x_note="private-note")
    target = Chooser(catalogue, Vault(tmp_path), DoorSettings()).choose(calling)
    attempt = Attempt(target, calling.head.way(target, streaming=False))
    sent = outgoing(calling, attempt.way)
    attempt.headers, attempt.body = {"set-cookie": "private-cookie"}, b"private words"
    attempt.told, attempt.begun = Told(error_body=b"private words"), record_of(calling, attempt)
    printed = repr((calling, attempt, attempt.way, sent, target, calling.caller))
    assert "gpt-5" in printed
    assert not [word for word in ("sk-proj-mine", "hello", "private") if word in printed]


def _variables(endpoint: Endpoint) -> DoorSettings:
    variables = dict.fromkeys(endpoint.variables, "acme")
    return DoorSettings((Door(provider=endpoint.provider, variables=variables),))


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://user:pw@api.example.com",
        "https://169.254.169.254/v1",
        "https://10.0.0.1/v1",
        "https://localhost/v1",
        "ftp://api.example.com",
    ],
)
def test_unsafe_doors_are_refused_where_they_are_written(url: str) -> None:
    with pytest.raises(ValidationError):
        Door(provider="openai", base_url=url)


# --- routes ---


def test_mistakes_in_the_routes_file_are_told_by_place_and_never_by_value(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(
        '[[route]]\nname = "a"\nmodels = ["a"]\nsecret = "sk-ant-x"\n[[route.target]]\nprovider = "openai"\n'
    )
    with pytest.raises(RoutesFileError, match=r"route\.0\.secret") as caught:
        RouteFiles(tmp_path)
    assert "sk-ant" not in str(caught.value)
    path.write_text("[[route")
    with pytest.raises(RoutesFileError, match="is not TOML"):
        RouteFiles(tmp_path)


def test_routes_defined_by_the_api_come_first_and_survive(tmp_path: Path) -> None:
    target = '[[route.target]]\nprovider = "openai"\n'
    (tmp_path / "routes.toml").write_text(f'[[route]]\nname = "a"\nmodels = ["x*"]\n{target}')
    files = RouteFiles(tmp_path)
    files.put(Route.model_validate({"name": "b", "models": ["x1"], "target": [{"provider": "groq"}]}))
    again = RouteFiles(tmp_path).table
    assert [route.name for route in again.routes] == ["b", "a"]
    named = again.find("x2", named="b")
    assert named is not None and named.name == "b"
    found = [route.name if (route := again.find(model)) else None for model in ("x1", "x2", "y")]
    assert found == ["b", "a", None]
    assert files.delete("b") and not files.delete("a") and not RouteFiles(tmp_path).own


def _plan(
    catalogue: Catalogue,
    vault: Vault,
    route: dict[str, Any],
    told: Exchange,
    health: Health,
    desk: ReservationDesk | None = None,
) -> Any:
    table = RouteTable([Route.model_validate({"name": "r", "models": ["m"], **route})])
    allowance = Allowance(desk or ReservationDesk(_never))
    return Planner(Chooser(catalogue, vault, DoorSettings()), table, health, allowance).all_steps(told)


async def _never(body: bytes) -> int:
    raise AssertionError(body)


def test_what_costs_never_takes_a_plans_place_unless_told(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when the plan's target has failed, nor while it rests, nor for want of its key."""
    monkeypatch.setenv("K", "key")
    vault, health = Vault(tmp_path), Health()
    paid = {"provider": "zai", "model": "glm-4.6"}
    route = {"target": [{"provider": "zai-coding-plan", "model": "glm-4.6"}, paid]}
    vault.add(Entry("zai", "payg", env="K"))
    steps = _plan(catalogue, vault, route, exchange("m"), health).steps
    assert "no key" in steps[0].why_not and "may_cost" in steps[1].why_not
    vault.add(Entry("zai-coding-plan", "subscription", env="K"))
    plan = _plan(catalogue, vault, route, exchange("m"), health)
    health.failed(plan.steps[0].target, failure(FailureKind.PLAN_LIMIT, "used up", retry_after_s=3600))
    resting = _plan(catalogue, vault, route, exchange("m"), health)
    assert [step.target and step.target.provider for step in resting.steps] == [None, "zai-coding-plan"]
    paid["may_cost"] = True  # type: ignore[assignment]
    told = _plan(catalogue, vault, route, exchange("m"), health)
    assert [step.target.provider for step in told.steps] == ["zai", "zai-coding-plan"]
    assert told.next() is not None and told.next(failure(FailureKind.INVALID_REQUEST, "bad")) is None


def test_conditions() -> None:
    when = {"since": "22:00", "until": "06:00", "time_zone": "Europe/Berlin", "headers": {"x-tier": "g*"}}
    target = {"provider": "openai", "when": {**when, "tools": False, "min_input_tokens": 10}}
    rule = Route.model_validate({"name": "r", "models": ["m"], "target": [target]}).target[0]
    night, noon = datetime(2026, 1, 5, 22, 30, tzinfo=UTC), datetime(2026, 1, 5, 12, tzinfo=UTC)
    told = exchange("m", x_tier="gold")
    assert rule.when.unmet(told, input_tokens=10, now=night) is None
    assert "between" in (rule.when.unmet(told, input_tokens=10, now=noon) or "")
    assert "x-tier" in (rule.when.unmet(exchange("m"), input_tokens=10, now=night) or "")
    assert "fewer" in (rule.when.unmet(told, input_tokens=9, now=night) or "")


def test_what_is_left_chooses_the_target(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of every budget that covers the call, and a plan whose windows have something left."""
    monkeypatch.setenv("K", "key")
    vault, desk = Vault(tmp_path), ReservationDesk(_never)
    for provider, access in (("zai-coding-plan", "subscription"), ("openai", "payg")):
        vault.add(Entry(provider, access, env="K"))
    plan = {"provider": "zai-coding-plan", "when": {"plan_window_left": True}}
    metered = {"provider": "openai", "may_cost": True, "when": {"min_budget_left": "0.2"}}
    cheap = {"provider": "openai", "model": "gpt-5-nano", "may_cost": True}

    def served(team: str) -> list[str | None]:
        told = exchange("m", x_tollbook_team=team)
        steps = _plan(catalogue, vault, {"target": [plan, metered, cheap]}, told, Health(), desk).steps
        return [step.why_not for step in steps]

    assert "starting" in (served("a")[0] or "")
    spent = {"bucket_s": 0, "amount": "8.5", "unpriced": 0}
    budget = {"id": "purse", "scope": {"team": "a"}, "limit": "10", "period": "total"}
    entry = {"budget": budget, "offset": 1, "spend": [spent]}
    desk.take_snapshot({"seq": 0, "offset": 1, "at_s": 0, "budgets": [entry], "holds": []})
    assert served("a") == [None, "of budget purse 1.5 of 10 is left", None]
    assert served("b") == [None, None, None]
    seat = {"plan_id": "p", "plan": "GLM Coding", "provider": "zai-coding-plan", "account_id": None}
    desk.used_up = windows_told([{**seat, "quota": "5h", "resets_at": "2999-01-01T00:00:00+00:00"}])
    assert served("b")[0] == "the 5h window of GLM Coding is used up until 2999-01-01T00:00:00Z"
    plan["when"] = {"plan_window_left": False}
    assert served("b")[0] is None


@pytest.mark.parametrize(
    "when",
    [
        {"min_budget_left": 0.2},
        {"min_budget_left": "1.5"},
        {"budget": "0.2"},
        {"since": "08:00"},
        {"since": "08:00", "until": "08:00"},
    ],
)
def test_conditions_are_read_strictly(when: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        When.model_validate(when)


def test_weights_share_a_place() -> None:
    targets = [{"provider": "a", "weight": 9}, {"provider": "b", "weight": 1}, {"provider": "c"}]
    route = Route.model_validate({"name": "r", "models": ["m"], "target": targets})
    chance = random.Random(7)
    orders = [[rule.provider for rule in route.ordered(chance)] for _ in range(1000)]
    assert all(order[2] == "c" for order in orders)
    assert 850 < sum(order[0] == "a" for order in orders) < 950


def test_a_target_rests_after_faults_and_is_forgiven_when_it_answers(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    target = Chooser(catalogue, Vault(tmp_path), DoorSettings()).choose(
        exchange("gpt-5", authorization="Bearer sk-proj-x")
    )
    health = Health()
    for _ in range(4):
        health.failed(target, failure(FailureKind.SERVER_ERROR, "down"))
    assert health.resting(target) is None
    health.failed(target, failure(FailureKind.SERVER_ERROR, "down"))
    assert "server error" in (health.resting(target) or "")
    health.answered(target)
    assert health.resting(target) is None


def test_a_limit_of_one_callers_key_is_not_anothers_and_a_fault_is_everybodys(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    chooser = Chooser(catalogue, Vault(tmp_path), DoorSettings())
    mine, theirs = (
        chooser.choose(exchange("gpt-5", authorization=f"Bearer sk-proj-{whose}")) for whose in "xy"
    )
    for kind in (FailureKind.AUTH, FailureKind.RATE_LIMIT, FailureKind.PLAN_LIMIT, FailureKind.BILLING):
        health = Health()
        health.failed(mine, failure(kind, "no"))
        assert health.resting(mine) and not health.resting(theirs)
    health = Health()
    health.failed(mine, failure(FailureKind.OVERLOADED, "busy"))
    assert "overloaded" in (health.resting(theirs) or "")
    health.answered(theirs)
    assert health.resting(mine) is None


def test_what_a_plan_covers_does_not_go_through_a_metered_door_whatever_the_key_looks_like(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be booked as covered and be billed. The plan's own door may be none that is spoken here."""
    monkeypatch.setenv("A_KEY", "opaque")
    for number, (provider, kept, door) in enumerate(
        [
            ("google", "subscription", "payg"),
            ("groq", "subscription", "payg"),
            ("github-copilot", "payg", "subscription"),
        ]
    ):
        vault = Vault(tmp_path / str(number))
        vault.add(Entry(provider, kept, env="A_KEY"))
        chooser = Chooser(catalogue, vault, DoorSettings())
        facts = catalogue.book.providers[provider]
        with pytest.raises(Refused, match="refused before anything was sent") as refused:
            chooser.target(exchange("m"), facts, "m", credential=CredentialKind.VAULT)
        assert refused.value.failure.code == "wrong_key"
        vault.add(Entry(provider, door, account="right", env="A_KEY"))
        right = chooser.target(exchange("m"), facts, "m", access=door, credential=CredentialKind.VAULT)
        assert (right.access, right.endpoint.access) == (door, door)


@pytest.mark.parametrize(
    ("model", "key", "provider", "served"),
    [
        ("gpt-5", "sk-proj-x", "openai", "gpt-5"),
        ("some-new-model", "unknown-key", "openai", "some-new-model"),
        ("anthropic/claude-sonnet-4-5", "sk-or-v1-x", "openrouter", "anthropic/claude-sonnet-4-5"),
        ("zai-coding-plan/glm-4.6", "a.b", "zai-coding-plan", "glm-4.6"),
        ("kimi-k2", "sk-kimi-x", "kimi-for-coding", "kimi-k2"),
        ("ollama/llama3", "sk-proj-x", "ollama", "llama3"),
    ],
)
def test_the_model_and_the_key_lead_to_a_provider(
    catalogue: Catalogue, tmp_path: Path, model: str, key: str, provider: str, served: str
) -> None:
    chooser = Chooser(catalogue, Vault(tmp_path), DoorSettings())
    chosen = chooser.choose(exchange(model, authorization=f"Bearer {key}"))
    assert (chosen.provider, chosen.model) == (provider, served)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("glm-4.6", "sk-proj-x"),
        ("", ""),
        ("gpt-5", ""),
        ("zai/glm-4.6", "sk-kimi-x"),
        ("deepseek/deepseek-chat", "sk-0123"),
    ],
)
def test_what_cannot_be_decided_is_refused(
    catalogue: Catalogue, tmp_path: Path, model: str, key: str
) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(Refused) as refused:
        Chooser(catalogue, Vault(tmp_path), DoorSettings()).choose(exchange(model, **headers))
    assert not key or key not in str(refused.value)


def test_a_plan_and_a_metered_key_of_one_provider_are_told_apart_by_a_route_only(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever was taken unasked, the other would have been meant: that costs money, or a plan's window."""
    monkeypatch.setenv("K", "key")
    vault = Vault(tmp_path)
    for access in ("payg", "subscription"):
        vault.add(Entry("anthropic", access, env="K"))
    chooser = Chooser(catalogue, vault, DoorSettings())
    with pytest.raises(Refused, match="under payg and under subscription"):
        chooser.choose(exchange("claude-opus-4-5"))
    rules = {"target": [{"provider": "anthropic", "access": "payg"}]}
    [step] = _plan(catalogue, vault, rules, exchange("m"), Health()).steps
    assert step.target is not None and step.target.access == "payg"
    vault.remove("anthropic", access="payg")
    vault.add(Entry("anthropic", "subscription", account="second", env="K"))
    assert chooser.choose(exchange("claude-opus-4-5")).account == "default"


def test_what_a_head_leads_to_is_worked_out_once_and_again_when_the_keys_change(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    chooser, calling = Chooser(catalogue, Vault(tmp_path), DoorSettings()), exchange("openai/gpt-5")
    for key in ("sk-proj-one", "sk-proj-two"):
        Vault(tmp_path).add(Entry("openai", "payg"), Secret(key))
        target = chooser.choose(calling)
        sent = outgoing(calling, calling.head.way(target, streaming=False))
        assert (b"authorization", f"Bearer {key}".encode()) in sent.headers
        assert chooser.choose(calling) is target
        assert outgoing(calling, calling.head.way(target, streaming=False)).headers is sent.headers
    Vault(tmp_path).remove("openai")
    with pytest.raises(Refused, match="no key"):
        chooser.choose(calling)


async def test_calls_that_end_together_are_one_entry_of_the_journal(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    journal = Journal.open(tmp_path / "journal")
    recorder = Recorder(journal, InFlight(tmp_path / "in-flight", slots=4))
    calling = exchange("gpt-5", authorization="Bearer sk-proj-mine")
    target = Chooser(catalogue, Vault(tmp_path), DoorSettings()).choose(calling)
    attempts = [Attempt(target, Way(target), number=number) for number in (1, 2, 3)]
    for attempt in attempts:
        recorder.begin(calling, attempt)
    for attempt in attempts:
        recorder.end(calling, attempt, Outcome.ANSWERED)
    assert recorder.on_their_way == 3
    await recorder.settled()
    await asyncio.sleep(0)
    assert recorder.on_their_way == 0
    [frame] = read_frames(tmp_path / "journal", start=0, stop=journal.durable, max_bytes=1 << 20)
    told = ExportTraceServiceRequest.FromString(frame.body).resource_spans
    spans = [span.span_id for each in told for span in each.scope_spans[0].spans]
    assert spans == [attempt.span_id for attempt in attempts]
    await recorder.close()
    await journal.close()


# --- the way to a provider ---


async def _asked(url: str, script: str, *, local: bool = True, **timeouts: Any) -> bytes:
    upstream = Upstream(Timeouts(**timeouts))
    body = {"model": "gpt-5", "stream": True, "messages": [{"role": "user", "content": script}]}
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer sk-proj-mine")]
    try:
        answer = await upstream.send(
            *("POST", f"{url}/openai/chat/completions", headers),
            json.dumps(body).encode(),
            local=local,
        )
        try:
            return await answer.whole(1 << 20)
        finally:
            answer.close()
    finally:
        await upstream.close()


async def test_waits_have_an_end() -> None:
    with model_server() as models:
        assert b"[DONE]" in await _asked(models.url, "slowly", idle_s=2.0)
        with pytest.raises(TooSlow, match="did not answer"):
            await _asked(models.url, "stall", first_byte_s=0.2)
        limits: list[dict[str, Any]] = [{"idle_s": 0.1}, {"total_s": 0.5}]
        for timeouts in limits:
            with pytest.raises(TooSlow, match="in the middle"):
                await _asked(models.url, "slowly", **timeouts)
        with pytest.raises(Broken):
            await _asked(models.url, "cut after 2")


async def test_what_cannot_be_reached_has_seen_nothing() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            await _asked(f"http://127.0.0.1:{unheard.getsockname()[1]}", "say hello")
    with pytest.raises(Unreachable):
        await _asked("http://localhost:9", "say hello", local=False)
    with pytest.raises(Unreachable, match="by https"):
        await _asked("http://1.1.1.1:9", "say hello", local=True)


# --- connections ---


async def test_nothing_of_an_answer_that_nobody_asked_for_is_read() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for body in (b"asked for", b"not asked for"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    kept: list[Connection] = []
    async with await asyncio.start_server(twice, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Connection(Timeouts(), kept.append), "127.0.0.1", port)
        answer = await made.ask(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        assert await answer.whole(1000) == b"asked for"
        answer.close()
    assert not kept
