"""Live calls end to end: real SDKs through a real house to a server that speaks each provider's dialect."""

from __future__ import annotations

import http.client
import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import openai
import pytest

from tests.house import House
from tests.model_server import WORDS, Arrived, ModelServer, model_server
from tests.telemetry import attribute, export, new_call, span_of

TEXT = "".join(WORDS)
OPENAI_KEY, ANTHROPIC_KEY, VAULT_KEY = "sk-proj-mine", "sk-ant-api03-mine", "sk-kimi-ours"
ROUTES = """
[[route]]
name = "plan-first"
models = ["code", "code-*"]
[[route.target]]
provider = "kimi-for-coding"
model = "kimi-k2"
[[route.target]]
provider = "anthropic"
model = "claude-opus-4-5"
credential = "caller"
may_cost = true

[[route]]
name = "plan-only"
models = ["free"]
[[route.target]]
provider = "kimi-for-coding"
model = "kimi-k2"
[[route.target]]
provider = "anthropic"
model = "claude-opus-4-5"

[[route]]
name = "large"
models = ["sized"]
degrade = true
[[route.target]]
provider = "openai"
model = "gpt-4.1-mini"
when = { max_input_tokens = 100 }
[[route.target]]
provider = "openai"
model = "gpt-4.1"

[[route]]
name = "while-it-lasts"
models = ["lasting"]
[[route.target]]
provider = "kimi-for-coding"
model = "kimi-k2"
when = { plan_window_left = true }
[[route.target]]
provider = "anthropic"
model = "claude-opus-4-5"
credential = "caller"
may_cost = true
"""
ACCOUNTS = """
[[account]]
id = "kimi"
provider = "kimi-for-coding"
access = "subscription"
plan = "kimi-for-coding"
windows = [{ id = "5h", size = "1", unit = "requests" }]
"""
DOORS = ("openai", "anthropic", "google", "kimi-for-coding", "groq")


@dataclass
class Place:
    """A running house, the providers behind it, and the clients that the tests opened, closed at the end."""

    house: House
    models: ModelServer
    opened: ExitStack

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.house.http).netloc, timeout=30)
        told = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request("POST", path, content, told)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def metrics(self) -> bytes:
        with urllib.request.urlopen(f"{self.house.http}/metrics") as answer:
            return bytes(answer.read())

    def budget(self, budget_id: str) -> tuple[Decimal, Decimal]:
        """What is spent and what is held."""
        told = self.house.get(f"/api/v1/budgets/{budget_id}")
        standing = told.get("standing", told)
        return Decimal(standing["spent"]), Decimal(standing["reserved"])

    @property
    def last(self) -> Arrived:
        return self.models.arrived[-1]

    def calls(self, where: str = "true") -> list[dict[str, Any]]:
        """Rows of `calls`, once everything acknowledged is published."""
        self.house.wait_published()
        question = {"query": f"SELECT * FROM calls WHERE {where} ORDER BY started_at"}
        answer = self.house.post("/api/v1/sql", question)
        return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]

    def until(self, met: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait for what must come true."""
        deadline = time.monotonic() + timeout_s
        while not met():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def openai(self, key: str = OPENAI_KEY, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.house.http}/v1", api_key=key, max_retries=0, **options)
        return self.opened.enter_context(client)

    def anthropic(self, key: str = ANTHROPIC_KEY, **options: Any) -> anthropic.Anthropic:
        client = anthropic.Anthropic(base_url=self.house.http, api_key=key, max_retries=0, **options)
        return self.opened.enter_context(client)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data_dir = tmp_path_factory.mktemp("proxy") / "data"
    data_dir.mkdir()
    with model_server() as models:
        write_doors(data_dir, models.url)
        keep_key(data_dir, "kimi-for-coding", VAULT_KEY)
        (data_dir.parent / "accounts.toml").write_text(ACCOUNTS)
        config = data_dir.parent / "tollbook.toml"
        config.write_text(f'[catalog]\naccounts = "{data_dir.parent / "accounts.toml"}"\n')
        with House(data_dir, "--config", str(config)) as house, ExitStack() as opened:
            house.wait_ready()
            yield Place(house, models, opened)


@contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    """A house in a folder, whose doors are open and which holds no key."""
    data_dir = folder / "data"
    data_dir.mkdir()
    with model_server() as models:
        write_doors(data_dir, models.url)
        with House(data_dir) as house, ExitStack() as opened:
            house.wait_ready()
            yield Place(house, models, opened)


def write_doors(data_dir: Path, url: str) -> None:
    """Every provider of the tests has its doors on loopback."""
    door = '[[door]]\nprovider = "{}"\nbase_url = "{}/{}"\nlocal = true\n'
    text = "\n".join(door.format(provider, url, provider) for provider in DOORS)
    (data_dir / "routes.toml").write_text(text + ROUTES)


def keep_key(data_dir: Path, provider: str, key: str) -> None:
    command = [sys.executable, "-m", "tollbook.cli", "keys", "provider", "add", provider]
    subprocess.run(
        [*command, "--data-dir", str(data_dir)], input=key, text=True, check=True, capture_output=True
    )


def said(text: str = "say hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def test_openai_sdk(place: Place) -> None:
    reply = place.openai().chat.completions.create(model="gpt-5", **said())
    assert reply.choices[0].message.content == TEXT
    assert place.last.path == "/openai/chat/completions"
    assert place.last.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    assert place.last.headers["user-agent"].startswith("OpenAI/Python")
    [call] = place.calls(f"response_id = '{reply.id}'")
    assert reply.usage is not None
    assert (call["input_tokens"], call["output_tokens"]) == (reply.usage.prompt_tokens, 5)
    assert (call["basis"], call["provider"], call["access"]) == ("proxy", "openai", "payg")
    uncached = reply.usage.prompt_tokens - 4
    cost = Decimal("1.25") * uncached / 10**6 + Decimal("0.125") * 4 / 10**6 + Decimal(10) * 5 / 10**6
    assert Decimal(call["list_cost_usd"]) == cost


def test_openai_sdk_streams_and_usage_is_known_though_nobody_asked(place: Place) -> None:
    stream = place.openai().chat.completions.create(model="gpt-5", stream=True, **said())
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.choices for chunk in chunks), "the event of the usage was not asked for"
    assert place.last.json()["stream_options"] == {"include_usage": True}
    [call] = place.calls(f"response_id = '{chunks[0].id}'")
    assert call["input_tokens"] > 0 and call["output_tokens"] == 5 and call["streaming"]
    assert call["ttft_ms"] > 0


def test_who_asks_for_the_usage_of_a_stream_gets_it(place: Place) -> None:
    options: Any = {"include_usage": True}
    stream = place.openai().chat.completions.create(
        model="gpt-5", stream=True, stream_options=options, **said()
    )
    assert [chunk.usage.completion_tokens for chunk in stream if chunk.usage] == [5]


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_provider_claims_that_a_call_cost_stands_beside_what_it_does(
    place: Place, stream: bool
) -> None:
    """Never in the place of it, and to the last decimal."""
    asked = said("cost 0.0001234567", model="gpt-5", stream=stream)
    status, headers, _ = place.post("/v1/chat/completions", asked, authorization=f"Bearer {OPENAI_KEY}")
    assert status == 200
    [call] = place.calls(f"request_id = '{headers['x-request-id']}'")
    assert Decimal(call["reported_cost_usd"]) == Decimal("0.0001234567")
    assert Decimal(call["billed_cost_usd"]) == Decimal(call["list_cost_usd"]) != Decimal("0.0001234567")


def test_anthropic_sdk(place: Place) -> None:
    reply = place.anthropic().messages.create(model="claude-opus-4-5", max_tokens=9, **said())
    assert reply.content[0].text == TEXT  # type: ignore[union-attr]
    assert place.last.path == "/anthropic/messages"
    assert ANTHROPIC_KEY in place.last.headers.get("authorization", place.last.headers.get("x-api-key", ""))
    [call] = place.calls(f"response_id = '{reply.id}'")
    assert call["input_tokens"] == reply.usage.input_tokens + 3, "all input, cached included"
    assert (call["cache_read_tokens"], call["cost_status"], call["provider"]) == (3, "priced", "anthropic")


def test_anthropic_sdk_streams(place: Place) -> None:
    with place.anthropic().messages.stream(model="claude-opus-4-5", max_tokens=9, **said()) as stream:
        assert "".join(stream.text_stream) == TEXT
        reply = stream.get_final_message()
    [call] = place.calls(f"response_id = '{reply.id}'")
    assert call["output_tokens"] == 5, "message_delta's count, not message_start's placeholder"


def test_responses_api(place: Place) -> None:
    reply = place.openai().responses.create(model="gpt-5", input="say hello")
    assert reply.output_text == TEXT
    with place.openai().responses.stream(model="gpt-5", input="say hello") as stream:
        events = list(stream)
    assert events[-1].type == "response.completed"
    assert len(place.calls(f"response_id IN ('{reply.id}', '{events[-1].response.id}')")) == 2


def test_embeddings(place: Place) -> None:
    before = len(place.calls("served_model LIKE '%embedding%'"))
    place.openai().embeddings.create(model="text-embedding-3-small", input="say hello")
    calls = place.calls("served_model LIKE '%embedding%'")
    assert len(calls) == before + 1
    assert (calls[-1]["output_tokens"], calls[-1]["cost_status"]) == (0, "priced")


def test_gemini(place: Place) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "say hello"}]}]}
    for verb, query in (("generateContent", ""), ("streamGenerateContent", "?alt=sse")):
        path = f"/v1beta/models/gemini-2.5-flash:{verb}{query}"
        status, _, answer = place.post(path, body, x_goog_api_key="AIza-mine")
        assert status == 200 and b"toll" in answer
        assert place.last.path == f"/google/models/gemini-2.5-flash:{verb}"
        assert place.last.headers["x-goog-api-key"] == "AIza-mine"
    calls = place.calls("provider = 'google'")
    assert [call["output_tokens"] for call in calls] == [5, 5]


def test_geminis_stream_is_an_array_to_who_does_not_ask_for_events(place: Place) -> None:
    """So it is at Google. No other dialect has the like: there the caller is told what to ask for."""
    body = {"contents": [{"role": "user", "parts": [{"text": "say hello"}]}]}
    path = "/v1beta/models/{}:streamGenerateContent"
    status, headers, answer = place.post(path.format("gemini-2.5-flash"), body, x_goog_api_key="AIza-mine")
    assert (status, answer, place.last.query) == (200, place.models.sent[-1], "")
    assert len(json.loads(answer)) > 1
    [call] = place.calls(f"request_id = '{headers['x-request-id']}'")
    assert (call["output_tokens"], call["streaming"]) == (5, True)
    status, _, answer = place.post(path.format("gpt-5"), body, authorization=f"Bearer {OPENAI_KEY}")
    assert status == 400 and b"without ?alt=sse" in answer
    status, _, answer = place.post(
        path.format("gpt-5") + "?alt=sse", body, authorization=f"Bearer {OPENAI_KEY}"
    )
    assert status == 200 and answer.startswith(b"data: ")


STREAMED = [
    ("/v1/chat/completions", said(model="gpt-5", stream=True, stream_options={"include_usage": True})),
    ("/v1/messages", said(model="claude-opus-4-5", max_tokens=9, stream=True)),
    ("/v1/responses", {"model": "gpt-5", "input": "say hello", "stream": True}),
]
WHOLE = [(path, {**body, "stream": False, "stream_options": None}) for path, body in STREAMED]


@pytest.mark.parametrize(("path", "body"), [*STREAMED, *WHOLE])
def test_bytes_are_relayed_as_they_are(place: Place, path: str, body: dict[str, Any]) -> None:
    """Odd blanks, escapes and numbers, both ways."""
    odd = (
        json.dumps(body).replace('"model"', '\n\t"mod\\u0065l"', 1).replace("{", '{"temperature": 1.00, ', 1)
    )
    key = ANTHROPIC_KEY if path == "/v1/messages" else OPENAI_KEY
    status, headers, answer = place.post(path, odd.encode(), authorization=f"Bearer {key}")
    assert status == 200
    assert place.last.body == odd.encode()
    assert answer == place.models.sent[-1]
    assert headers.get("x-request-id", headers.get("request-id", "")).startswith("req_")


def test_headers_of_the_client_go_on_and_ours_stay(place: Place) -> None:
    place.post(
        "/v1/messages?beta=true",
        said(model="claude-opus-4-5", max_tokens=9),
        authorization="Bearer sk-ant-oat01-login",
        anthropic_beta="oauth-2025-04-20,claude-code-20250219",
        user_agent="claude-cli/2.1.92 (external, cli)",
        x_app="cli",
        x_claude_code_session_id="7c0d0a3e-session",
        x_tollbook_team="core",
        connection="keep-alive, x-hop",
        x_hop="dropped",
    )
    sent = place.last.headers
    assert place.last.query == "beta=true"
    assert sent["authorization"] == "Bearer sk-ant-oat01-login"
    assert sent["anthropic-beta"] == "oauth-2025-04-20,claude-code-20250219"
    assert sent["user-agent"] == "claude-cli/2.1.92 (external, cli)" and sent["x-app"] == "cli"
    assert not {"x-tollbook-team", "x-hop"} & set(sent)
    [call] = place.calls("session_id = '7c0d0a3e-session'")
    assert (call["access"], call["team"], call["service"]) == ("subscription", "core", "claude-code")
    assert call["cost_status"] == "included"


def test_our_key_opens_the_door_and_the_callers_does_not_go_along(place: Place) -> None:
    body = said(model="kimi-for-coding/kimi-k2", max_tokens=9)
    status, headers, _ = place.post("/v1/messages", body, authorization="Bearer sk-ant-api03-mine")
    assert status == 200
    assert place.last.path == "/kimi-for-coding/messages"
    assert place.last.json()["model"] == "kimi-k2"
    shown = " ".join(place.last.headers.values())
    assert VAULT_KEY in shown and "sk-ant" not in shown
    assert (headers["tollbook-provider"], headers["tollbook-access"]) == ("kimi-for-coding", "subscription")
    call = place.calls("provider = 'kimi-for-coding'")[-1]
    assert (call["access"], call["cost_status"], call["account_id"]) == (
        "subscription",
        "included",
        "default",
    )
    assert VAULT_KEY not in place.house.log()


def test_a_plan_key_is_not_shown_at_a_metered_door(place: Place) -> None:
    before = len(place.models.arrived)
    body = said(model="moonshotai/kimi-k2", max_tokens=9)
    status, _, answer = place.post("/v1/messages", body, x_api_key="sk-kimi-mine")
    assert status in (400, 401)
    assert b"belong to kimi-for-coding" in answer and b"sk-kimi-mine" not in answer
    assert len(place.models.arrived) == before


def test_a_key_of_another_provider_is_never_shown(place: Place) -> None:
    before = len(place.models.arrived)
    status, _, answer = place.post(
        "/v1/chat/completions", said(model="groq/llama-3"), authorization="Bearer sk-proj-x"
    )
    assert status == 401 and b"openai" in answer
    assert len(place.models.arrived) == before


def test_another_dialect_is_translated_both_ways(place: Place) -> None:
    """OpenAI's SDK with a key of Anthropic's and the reverse, whole and streamed, refusals too."""
    chat = place.openai(ANTHROPIC_KEY).chat.completions
    reply = chat.create(model="anthropic/claude-opus-4-5", **said())
    assert (reply.choices[0].message.content, place.last.path) == (TEXT, "/anthropic/messages")
    assert place.last.headers["x-api-key"] == ANTHROPIC_KEY
    assert not {"authorization", "x-stainless-lang"} & set(place.last.headers)
    chunks = list(chat.create(model="claude-opus-4-5", stream=True, **said()))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    messages = place.anthropic(OPENAI_KEY).messages
    with messages.stream(model="openai/gpt-5", max_tokens=9, **said()) as stream:
        assert "".join(stream.text_stream) == TEXT
    assert (place.last.path, place.last.json()["model"]) == ("/openai/chat/completions", "gpt-5")
    calls = place.calls("basis = 'proxy'")[-3:]
    assert [call["provider"] for call in calls] == ["anthropic", "anthropic", "openai"]
    assert [call["output_tokens"] for call in calls] == [5, 5, 5]
    with pytest.raises(anthropic.RateLimitError) as refused:
        messages.create(model="openai/gpt-5", max_tokens=9, **said("status 429"))
    assert refused.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index, call-overload]


def test_a_door_that_always_streams_is_a_document_to_who_asked_for_one(place: Place) -> None:
    chat = place.openai(ANTHROPIC_KEY).chat.completions
    reply = chat.create(model="anthropic/claude-opus-4-5", **said("stream anyway"))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (TEXT, "stop")
    [call] = place.calls(f"response_id LIKE '%{reply.id.rpartition('_')[2].rpartition('-')[2]}'")[-1:]
    assert call["output_tokens"] == 5


def test_models_are_listed_by_names_that_mean_one_thing(place: Place) -> None:
    listed = [model.id for model in place.openai().models.list()]
    providers = ["kimi-for-coding/listed-model", "openai/listed-model"]
    assert listed == ["code", "free", "sized", "lasting", *providers]
    assert [model.id for model in place.anthropic("tollbook").models.list()][-1] == providers[0]
    asked = [each for each in place.models.arrived if each.path.endswith("/models")]
    assert len(asked) == 2, "the second time they are remembered"


def test_routes_by_api_and_explained(place: Place) -> None:
    target = [{"provider": "openai", "model": "gpt-4.1", "credential": "caller"}, {"provider": "groq"}]
    request = urllib.request.Request(
        f"{place.house.http}/api/v1/routes/quick",
        json.dumps({"models": ["quick"], "target": target}).encode(),
        {"content-type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request).close()
    reply = place.openai().chat.completions.create(model="quick", **said())
    assert reply.choices[0].message.content == TEXT and place.last.json()["model"] == "gpt-4.1"
    asked = {"model": "quick", "headers": {"authorization": f"Bearer {OPENAI_KEY}"}}
    told = place.house.post("/api/v1/routes/explain", asked)
    first, second = told["steps"]
    assert (told["route"], first["access"], first["key"]) == ("quick", "payg", "caller")
    assert first["url"] == f"{place.models.url}/openai/chat/completions"
    assert "belong to openai" in second["why_not"]
    assert OPENAI_KEY not in json.dumps(told)


def test_what_is_ambiguous_is_refused_with_the_ways_to_settle_it(place: Place) -> None:
    with pytest.raises(openai.BadRequestError, match=r"/glm-4\.6`"):
        place.openai(key="tollbook").chat.completions.create(model="glm-4.6", **said())
    with pytest.raises(urllib.error.HTTPError) as refused:
        place.house.post("/api/v1/routes/explain", {"model": "glm-4.6"})
    problem = json.load(refused.value)
    assert problem["code"] == "call_refused" and "/glm-4.6`" in problem["detail"]
    assert "errors" not in problem["next"]


def test_a_route_falls_to_what_costs_only_where_it_says_so(place: Place) -> None:
    """The plan is used up: the next target serves, visibly; without `may_cost` the refusal is passed on."""
    asked = said("status 429 unless metered", model="code", max_tokens=9)
    status, headers, _ = place.post("/v1/messages", asked, x_api_key=ANTHROPIC_KEY)
    assert (status, headers["tollbook-route"], headers["tollbook-access"]) == (200, "plan-first", "payg")
    assert headers["tollbook-fallback-from"].startswith("kimi-for-coding/kimi-k2 (subscription, default)")
    assert [each.path for each in place.models.arrived[-2:]] == [
        "/kimi-for-coding/messages",
        "/anthropic/messages",
    ]
    before = len(place.models.arrived)
    refused = place.post("/v1/messages", {**asked, "model": "free"}, x_api_key=ANTHROPIC_KEY)
    assert refused[0] == 429 and json.loads(refused[2])["error"]["type"] == "rate_limit_error"
    assert len(place.models.arrived) == before + 1
    served = place.calls("model = 'anthropic/claude-opus-4-5'")[-1]
    tried = place.calls("provider = 'kimi-for-coding' AND http_status = 429")
    assert (served["cost_status"], tried[-1]["billed_cost_usd"]) == ("priced", "0.000000000000")
    assert b'proxy_fallbacks_total{to_paid="true"} 1' in place.metrics()


def test_a_plan_that_is_used_up_is_told_of_and_passed_over(place: Place) -> None:
    """From a call's record over the ledger's windows to the front: the advice of a check, and the route."""
    asked = said(model="kimi-for-coding/kimi-k2", max_tokens=9)
    assert place.post("/v1/messages", asked, authorization="Bearer tollbook")[0] == 200
    scope = {"provider": "kimi-for-coding", "access": "subscription", "account_id": "default"}
    check = {"scope": scope, "estimate": {"usd": "0"}}

    def told() -> list[dict[str, Any]]:
        windows: list[dict[str, Any]] = place.house.post("/api/v1/budgets/check", check)["used_up"]
        return windows

    place.until(lambda: bool(told()), "the window is told of as used up")
    assert [(each["quota"], each["plan_id"]) for each in told()] == [("5h", "kimi-for-coding")]
    lasting = {**asked, "model": "lasting"}
    status, headers, _ = place.post("/v1/messages", lasting, x_api_key=ANTHROPIC_KEY)
    assert (status, headers["tollbook-provider"], headers["tollbook-route"]) == (
        200,
        "anthropic",
        "while-it-lasts",
    )
    explained = place.house.post("/api/v1/routes/explain", {"model": "lasting", "path": "/v1/messages"})
    assert "5h window of Kimi" in explained["steps"][0]["why_not"]


def test_conditions_choose_the_target(place: Place) -> None:
    for text, model in (("say hello", "gpt-4.1-mini"), ("x" * 1000, "gpt-4.1")):
        body = said(text, model="sized")
        assert place.post("/v1/chat/completions", body, authorization=f"Bearer {OPENAI_KEY}")[0] == 200
        assert place.last.json()["model"] == model


def test_budgets_hold_before_and_settle_after(place: Place) -> None:
    budget = {"id": "shoe", "scope": {"team": "shoestring"}, "limit": "0.001", "period": "day"}
    place.house.post("/api/v1/budgets", budget)
    asked = said(model="gpt-5", max_tokens=50)
    told = {"authorization": f"Bearer {OPENAI_KEY}", "x_tollbook_team": "shoestring"}
    assert place.post("/v1/chat/completions", asked, **told)[0] == 200
    before = len(place.models.arrived)
    dear = {**asked, "max_tokens": 90}
    status, headers, answer = place.post("/v1/chat/completions", dear, **told)
    error = json.loads(answer)["error"]
    assert (status, error["code"], headers["x-should-retry"]) == (429, "budget_exceeded", "false")
    assert int(headers["retry-after"]) > 0 and "shoe" in error["message"]
    assert len(place.models.arrived) == before
    [call] = place.calls("team = 'shoestring'")
    spent = Decimal(call["billed_cost_usd"])
    place.until(lambda: place.budget("shoe") == (spent, 0), "the call settles what was held")


def test_refusals_keep_status_and_words_and_are_recorded(place: Place) -> None:
    with pytest.raises(openai.RateLimitError, match="told to: status 429"):
        place.openai().chat.completions.create(model="gpt-5", **said("status 429"))
    with pytest.raises(anthropic.InternalServerError):
        place.anthropic().messages.create(model="claude-opus-4-5", max_tokens=9, **said("status 529"))
    refused = {(call["http_status"], call["cost_status"]) for call in place.calls("status = 'error'")}
    assert {(429, "not_billable"), (529, "not_billable")} <= refused


def test_nobody_is_sent_elsewhere_with_a_key_in_hand(place: Place) -> None:
    before = len(place.models.arrived)
    body = said("status 307", model="gpt-5")
    status, headers, answer = place.post("/v1/chat/completions", body, authorization=f"Bearer {OPENAI_KEY}")
    assert (status, "location" in headers, b"127.0.0.1" in answer) == (502, False, False)
    assert len(place.models.arrived) == before + 1
    [call] = place.calls("http_status = 307")
    assert (call["status"], call["cost_status"]) == ("error", "not_billable")


def test_the_agents_own_telemetry_of_a_call_is_the_same_call(place: Place) -> None:
    """Without any id but the trace's, and although a first try under the same span was refused."""
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    call = new_call(random.Random(1), started_ns=time.time_ns())
    for text in ("status 429", "say hello"):
        body = said(text, model="gpt-5")
        key, traceparent = f"Bearer {OPENAI_KEY}", f"00-{trace}-{parent}-01"
        answer = place.post("/v1/chat/completions", body, authorization=key, traceparent=traceparent)[2]
    told = json.loads(answer)
    span = span_of(call, random.Random(1))
    span.trace_id, span.span_id = bytes.fromhex(trace), bytes.fromhex(parent)
    del span.attributes[:]
    for name, value in (("operation.name", "chat"), ("request.model", "gpt-5"), ("usage.output_tokens", 5)):
        span.attributes.append(attribute(f"gen_ai.{name}", value))
    span.attributes.append(attribute("gen_ai.usage.input_tokens", told["usage"]["prompt_tokens"]))
    place.house.send("traces", export([span]))
    refused, answered = place.calls(f"trace_id = '{trace}'")
    assert (refused["http_status"], refused["observation_count"]) == (429, 1)
    assert (answered["observation_count"], answered["basis"]) == (2, "proxy")
    assert (answered["response_id"], answered["service"], answered["team"]) == (
        told["id"],
        "shop-agent",
        "checkout",
    )


def test_what_codex_did_with_an_answer_afterwards_is_no_call_of_its_own(place: Place) -> None:
    """Its span begins when the answer is over, as late as a busy machine makes it."""
    trace = "5bf92f3577b34da6a3ce929d0e0e4737"
    answer = place.post(
        *("/v1/responses", {"model": "gpt-5", "input": "say hello"}),
        authorization=f"Bearer {OPENAI_KEY}",
        traceparent=f"00-{trace}-00f067aa0ba902b7-01",
        user_agent="codex_exec/0.169.0 (Debian)",
    )[2]
    usage = json.loads(answer)["usage"]
    span = span_of(new_call(random.Random(2), started_ns=time.time_ns() + 300_000_000), random.Random(2))
    span.name, span.trace_id = "handle_responses", bytes.fromhex(trace)
    del span.attributes[:]
    for name in ("input_tokens", "output_tokens"):
        span.attributes.append(attribute(f"gen_ai.usage.{name}", usage[name]))
    span.attributes.append(attribute("codex.usage.total_tokens", usage["total_tokens"]))
    place.house.send("traces", export([span], scope="codex_exec", service="codex_exec"))
    [call] = place.calls(f"trace_id = '{trace}'")
    assert (call["observation_count"], call["basis"], call["emitter"]) == (2, "proxy", "codex")


def test_a_caller_that_leaves_ends_the_call_and_its_use_is_unknown_not_free(place: Place) -> None:
    left = place.models.left
    stream = place.openai().chat.completions.create(model="gpt-5", stream=True, **said("slowly"))
    first = next(iter(stream))
    stream.close()
    place.until(lambda: place.models.left > left, "the provider is left too")
    place.until(lambda: bool(place.calls(f"response_id = '{first.id}'")), "the call is in the book")
    [call] = place.calls(f"response_id = '{first.id}'")
    assert (call["cost_status"], call["status"]) == ("usage_unknown", "ok")


def test_a_stream_that_breaks_tells_so_and_keeps_what_came(place: Place) -> None:
    messages = place.anthropic().messages
    cut = messages.stream(model="claude-opus-4-5", max_tokens=9, **said("cut after 4"))
    with pytest.raises(anthropic.APIError), cut as stream:
        list(stream.text_stream)
    call = place.calls("provider = 'anthropic'")[-1]
    assert call["input_tokens"] > 3 and call["cost_status"] == "priced"


def test_what_is_no_request_is_refused_in_the_callers_dialect(place: Place) -> None:
    status, _, answer = place.post("/v1/messages", b"{", x_api_key="k")
    assert status == 400 and json.loads(answer)["error"]
    assert place.post("/v1/messages", b"a=b", content_type="text/plain")[0] == 400


def test_counting_tokens_is_no_call(place: Place) -> None:
    before = len(place.calls())
    counted = place.anthropic().messages.count_tokens(model="claude-opus-4-5", **said())
    assert counted.input_tokens == 7
    assert place.last.path == "/anthropic/messages/count_tokens"
    assert len(place.calls()) == before


def test_after_a_kill_calls_cut_off_are_unknown_and_calls_answered_are_whole(place: Place) -> None:
    stream = place.anthropic().messages.create(
        model="claude-opus-4-5", max_tokens=9, stream=True, **said("slowly")
    )
    next(iter(stream))
    before = len(place.calls())
    answered = place.openai().chat.completions.create(model="gpt-5", **said())
    place.house.kill()
    with pytest.raises((anthropic.APIError, Exception)):
        list(stream)
    place.house.restart()
    place.house.wait_ready()
    calls = place.calls()
    assert len(calls) == before + 2
    assert {call["cost_status"] for call in calls[-2:]} == {"usage_unknown", "priced"}
    assert [call["output_tokens"] for call in calls if call["response_id"] == answered.id] == [5]


def test_a_stop_lets_answers_come_to_their_end(place: Place) -> None:
    create = place.anthropic().messages.create
    stream = iter(create(model="claude-opus-4-5", max_tokens=9, stream=True, **said("slowly")))
    next(stream)
    place.house.process.send_signal(signal.SIGTERM)
    assert [event.type for event in stream][-1] == "message_stop"
    assert place.house.process.wait(timeout=60) == 0
