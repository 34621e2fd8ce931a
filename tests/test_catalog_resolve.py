"""Which provider, which model, which access: labelled ids, and the rules where a mistake would cost money."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from catalog.catalog import Catalog
from catalog.provider_book import load_book
from catalog.resolve import Evidence, Resolution, Resolver
from catalog.score import score

RESOLVER = Resolver(load_book())
ROWS = [
    json.loads(line)
    for line in Path("fixtures/corpora/model_ids.jsonl").read_text(encoding="utf-8").splitlines()
]


def resolve(model: str, **told: object) -> Resolution:
    return RESOLVER.resolve(Evidence(request_model=model, **told))  # type: ignore[arg-type]


def test_labelled_ids_are_right_and_nothing_is_over_claimed() -> None:
    found = score(ROWS, RESOLVER)
    assert not found.over_claims
    assert found.right >= 500, found.misses
    assert len(found.access_misses) <= 10, found.access_misses
    assert len(found.detail_misses) <= 2, found.detail_misses


@pytest.mark.parametrize(
    ("url", "provider", "access"),
    [
        ("https://api.z.ai/api/coding/paas/v4/chat/completions", "zai-coding-plan", "subscription"),
        ("https://api.z.ai/api/paas/v4/chat/completions", "zai", "payg"),
        ("https://opencode.ai/zen/v1/chat/completions", "opencode", "payg"),
        ("https://opencode.ai/zen/go/v1/chat/completions", "opencode-go", "subscription"),
        ("https://opencode.ai/zen/gopher/v1", "opencode", "payg"),
        ("https://API.Z.AI:443//api//coding/v4?key=1", "zai-coding-plan", "subscription"),
    ],
)
def test_the_longest_path_prefix_wins(url: str, provider: str, access: str) -> None:
    got = resolve("glm-4.6", url=url, provider_name="openai")
    assert (got.provider, got.access.access, got.model) == (provider, access, "zhipuai/glm-4.6")


@pytest.mark.parametrize(
    "address",
    [
        "attacker.example/api.groq.com",
        "https://attacker.example/api.groq.com/openai/v1",
        "api.groq.com.attacker.example",
    ],
)
def test_a_host_is_compared_whole_never_as_a_substring(address: str) -> None:
    got = resolve("glm-5", server_address=address)
    assert (got.provider, got.resolution, got.access.access) == (None, "ambiguous", "unknown")


def test_the_response_model_beats_an_alias_or_a_deployment() -> None:
    got = resolve("team-a-mini", response_model="gpt-5-mini", provider_name="azure.ai.openai")
    assert (got.provider, got.model, got.served_model) == ("azure", "openai/gpt-5-mini", "azure/gpt-5-mini")
    got = resolve("gpt-4o", response_model="gpt-4o-2024-05-13", provider_name="openai")
    assert (got.served_model, got.snapshot) == ("openai/gpt-4o-2024-05-13", "2024-05-13")


def test_a_request_that_names_the_regional_profile_keeps_it() -> None:
    got = resolve("us.anthropic.claude-sonnet-4-5-20250929-v1:0", response_model="claude-sonnet-4-5-20250929")
    assert got.served_model == "amazon-bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert dict(got.modifiers) == {"inference_profile": "us"}


def test_an_sdk_name_that_cannot_have_served_the_model_is_no_evidence() -> None:
    assert resolve("glm-4.6", provider_name="openai").resolution == "ambiguous"
    assert resolve("gpt-oss-120b", provider_name="openai").provider is None


def test_an_open_model_on_ones_own_machine_is_local_and_a_closed_one_is_not() -> None:
    assert resolve("llama3.3:70b", server_address="127.0.0.1", server_port=11434).access.access == "local"
    closed = resolve("gpt-4o-mini", server_address="127.0.0.1", server_port=8080, provider_name="openai")
    assert (closed.provider, closed.resolution, closed.access.access) == ("openai", "inferred", "unknown")
    gateway = resolve("glm-5", server_address="localhost", server_port=4000)
    assert (gateway.provider, gateway.resolution) == (None, "ambiguous")


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("some-gateway/claude-opus-4-5", "anthropic/claude-opus-4-5"),
        ("litellm/gpt-5", "openai/gpt-5"),
        ("our-proxy/team-a/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
    ],
)
def test_a_strange_name_in_front_leaves_the_model_known_and_who_served_it_open(
    model: str, known: str
) -> None:
    got = resolve(model)
    assert (got.model, got.provider, got.resolution) == (known, None, "ambiguous")
    assert resolve(known.partition("/")[2]).resolution == "inferred"


@pytest.mark.parametrize("junk", ["", "gpt", "custom:my-model", "gpt-5\u200b", "x" * 300, "a\nb"])
def test_junk_is_unresolved(junk: str) -> None:
    got = resolve(junk)
    assert (got.provider, got.model, got.resolution, got.access.access) == (
        None,
        None,
        "unresolved",
        "unknown",
    )


def test_claude_code_states_its_plan_or_nothing() -> None:
    stated = resolve(
        "claude-sonnet-4-5",
        emitter="claude-code",
        access_hint="subscription",
        access_evidence="anthropic.plan=max",
    )
    assert (stated.access.access, stated.access.confidence, stated.access.plan_id) == (
        "subscription",
        "stated",
        "claude-max",
    )
    silent = resolve("claude-sonnet-4-5", emitter="claude-code", provider_name="anthropic")
    assert (silent.provider, silent.access.access) == ("anthropic", "unknown")
    sdk = resolve("claude-sonnet-4-5", emitter="my-service", provider_name="anthropic")
    assert sdk.access.access == "payg"


def test_what_the_record_states_beats_the_url() -> None:
    got = resolve(
        "gpt-5.4",
        url="https://api.openai.com/v1",
        access_hint="subscription",
        access_evidence="auth_mode=Chatgpt",
    )
    assert (got.access.access, got.access.plan_id) == ("subscription", "chatgpt")


def test_a_free_variant_is_free_and_takes_no_other_price() -> None:
    assert resolve("deepseek/deepseek-r1:free", server_address="openrouter.ai").access.access == "free"


def test_the_same_bare_id_under_two_providers_never_collides() -> None:
    served = {
        resolve(i).served_model for i in ("zai/glm-4.6", "nano-gpt/zai-org/glm-4.6", "opencode-go/glm-4.6")
    }
    assert served == {"zai/glm-4.6", "nano-gpt/zai-org/glm-4.6", "opencode-go/glm-4.6"}


def test_a_batch_gives_each_row_its_own_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog.load(tmp_path_factory.getbasetemp() / "prices")
    calls = pl.DataFrame(
        {
            "provider_name": ["openai", None, "openai", None],
            "request_model": ["gpt-5", "glm-5", "gpt-5", None],
            "url": ["https://api.openai.com/v1?a=1", None, "https://api.openai.com/v1?a=2", None],
            "kept": [1, 2, 3, 4],
        }
    )
    got = catalog.resolve(calls)
    assert got["provider"].to_list() == ["openai", None, "openai", None]
    assert got["model"].to_list() == ["openai/gpt-5", "zhipuai/glm-5", "openai/gpt-5", None]
    assert got["resolution"].to_list() == ["resolved", "ambiguous", "resolved", "unresolved"]
    assert got["kept"].to_list() == [1, 2, 3, 4]
    assert catalog.resolve(got.select("request_model").clear()).height == 0


@pytest.mark.parametrize(
    ("model", "told", "provider", "canonical"),
    [
        # One id written as different tools write it.
        ("GPT-4O-MINI", {}, "openai", "openai/gpt-4o-mini"),
        ("openai:gpt-4o", {}, "openai", "openai/gpt-4o"),
        ("anthropic:claude-sonnet-4-5", {}, "anthropic", "anthropic/claude-sonnet-4-5"),
        ("bedrock:us.anthropic.claude-opus-4-6-v1", {}, "amazon-bedrock", "anthropic/claude-opus-4-6"),
        (
            "bedrock/converse/us.anthropic.claude-opus-4-6-v1",
            {},
            "amazon-bedrock",
            "anthropic/claude-opus-4-6",
        ),
        ("openai.gpt-oss-20b-1:0", {}, "amazon-bedrock", "openai/gpt-oss-20b"),
        ("mistral.mistral-7b-instruct-v0:2", {}, "amazon-bedrock", "mistral/mistral-7b-instruct-v0.2"),
        ("arn:aws:bedrock:us-east-1:111122223333:imported-model/xyz", {}, "amazon-bedrock", None),
        ("claude-opus-4-6@default", {}, "google-vertex", "anthropic/claude-opus-4-6"),
        ("ollama_chat/qwen2.5-coder:32b", {}, "ollama", "alibaba/qwen2.5-coder-32b"),
        ("mistral:instruct", {}, "ollama", "mistral/mistral-instruct"),
        ("gpt-oss:120b", {"provider_name": "ollama-cloud"}, "ollama-cloud", "openai/gpt-oss-120b"),
        (
            "zai-org/GLM-4.6:novita",
            {"server_address": "router.huggingface.co"},
            "huggingface",
            "zhipuai/glm-4.6",
        ),
        # A deployment's name is its owner's; the model is what answered.
        ("gpt-4o-prod", {"provider_name": "azure.ai.openai"}, "azure", None),
        (
            "gpt-4o-prod",
            {"provider_name": "azure.ai.openai", "response_model": "gpt-4o-2024-08-06"},
            "azure",
            "openai/gpt-4o",
        ),
        # What somebody made of open weights is not the lab's model; a copy of them is.
        ("neversleep/llama-3.1-lumimaid-70b", {"server_address": "openrouter.ai"}, "openrouter", None),
        ("acme/llama-3.3-70b-poet", {}, None, None),
        ("unsloth/Llama-3.3-70B-Instruct", {}, None, "meta/llama-3.3-70b-instruct"),
        ("route/kimi-k2.5", {"provider_name": "routing-run"}, "routing-run", "moonshotai/kimi-k2.5"),
        # A named provider that cannot have served it: somebody in between did.
        ("claude-haiku-4-5", {"provider_name": "google"}, None, "anthropic/claude-haiku-4-5"),
        ("gpt-4o", {"provider_name": "anthropic"}, None, "openai/gpt-4o"),
    ],
)
def test_spellings_of_tools_and_what_is_nobodys(
    model: str, told: dict[str, object], provider: str | None, canonical: str | None
) -> None:
    found = resolve(model, **told)
    assert (found.provider, found.model) == (provider, canonical)
