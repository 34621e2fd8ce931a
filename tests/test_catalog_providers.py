"""The reviewed TOML: wrong facts are refused with file, key and what is allowed; values are never printed."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from catalog.errors import ProviderDataError
from catalog.provider_book import DATA, load_book
from catalog.resolve import Evidence, Resolver
from catalog.schema import FOLDER, SHAPES, schema_text
from catalog.toml_source import TomlText

GOOD = 'id = "acme"\nname = "Acme"\nsource = "docs.acme.example"\nchecked = 2026-11-22\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shutil.copy(DATA / "labs.toml", tmp_path / "labs.toml")
    shutil.copytree(DATA / "providers", tmp_path / "providers")
    return tmp_path


def test_shipped_data_is_valid_and_every_fact_has_a_source() -> None:
    book = load_book()
    assert len(book.providers) >= 190
    assert all(p.source and p.checked for p in book.providers.values())
    assert book.names["aws.bedrock"] == "amazon-bedrock" and book.names["x-ai"] == "xai"


MAIN = [
    *("anthropic", "openai", "google", "google-vertex", "github-copilot", "xai", "mistral", "deepseek"),
    *("amazon-bedrock", "azure", "openrouter", "groq", "togetherai", "fireworks-ai", "cerebras", "cohere"),
    *("perplexity", "nvidia", "huggingface", "cloudflare-workers-ai", "vercel", "ollama", "ollama-cloud"),
    *("zai", "zai-coding-plan", "zhipuai", "zhipuai-coding-plan", "kimi-for-coding", "moonshotai", "minimax"),
    *("minimax-coding-plan", "minimax-cn-coding-plan", "opencode", "opencode-go", "nano-gpt", "alibaba"),
    *("alibaba-coding-plan", "alibaba-token-plan", "volcengine", "volcengine-coding-plan", "byteplus"),
    *("byteplus-coding-plan", "synthetic", "chutes", "xiaomi", "xiaomi-token-plan-cn", "stepfun-ai"),
    *("tencent-coding-plan", "stepfun-step-plan", "cline-pass", "kuae-cloud-coding-plan", "cursor"),
]


@pytest.mark.parametrize("name", MAIN)
def test_the_providers_that_agents_use_are_told_in_full(name: str) -> None:
    provider = load_book().providers[name]
    assert provider.formats and provider.checked and len(provider.source) > 3
    reached = provider.hosts or provider.local_ports or any(c.shared_with for c in provider.credentials)
    assert reached, f"{name} has no door"
    if provider.access == "subscription":
        assert provider.plan, f"{name} is a plan without a name"


def test_a_plan_named_by_a_door_a_statement_or_a_header_is_one_word_everywhere() -> None:
    book = load_book()
    plans = {plan for p in book.providers.values() for plan in (*p.plans, *([p.plan] if p.plan else []))}
    for provider in book.providers.values():
        named = {h.plan for h in provider.hosts} | {s.plan for s in provider.statements}
        named |= {m.plan for m in provider.markers}
        own = {h.plan for h in provider.hosts if h.plan}
        assert {plan for plan in named if plan} <= plans | own


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_schemas_for_editors_are_the_ones_that_validate(name: str) -> None:
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert written == schema_text(name), "stale: run python -m catalog.schema"
    properties = json.loads(written)["properties"]
    assert set(properties) == set(SHAPES[name].model_fields)


def test_keys_are_found_in_every_layout_of_toml() -> None:
    text = (
        '# a comment\nid = "x"\nplans = [\n  { id = "a" },\n  { id = "b" }, # ]\n]\n'
        'text = """\nid = \'no\'\n[ { \n"""\nflat = [ {a = 1}, {b = 2} ]\n'
        "[[hosts]]\nhost = 'a'\n[[hosts]]\nhost = 'b'\n[[hosts.ports]]\nn = 1\n[[hosts.ports]]\nn = 2\n"
    )
    tomllib.loads(text)
    lines = TomlText(text)
    places: dict[tuple[int | str, ...], int] = {
        ("id",): 2,
        ("plans", 0, "id"): 4,
        ("plans", 1): 5,
        ("flat", 1, "b"): 11,
        ("hosts", 0, "host"): 13,
        ("hosts", 1, "host"): 15,
        ("hosts", 1, "ports", 1, "n"): 19,
        ("hosts", 1, "absent"): 14,
        ("absent",): 1,
    }
    assert {place: lines.line(place) for place in places} == places


def test_a_new_provider_is_one_file_and_another_version(data: Path) -> None:
    before = load_book(data)
    (data / "providers" / "acme.toml").write_text(GOOD + '[[hosts]]\nhost = "api.acme.example"\n')
    after = load_book(data)
    assert "acme" in after.providers and after.sha256 != before.sha256


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("acme", "acme2"), r"acme\.toml:1: id: must be the file's name, acme"),
        (GOOD.replace('source = "docs.acme.example"\n', ""), r"acme\.toml:1: source: Field required"),
        (GOOD + 'acess = "payg"\n', r"acme\.toml:5: acess: Extra inputs are not permitted"),
        (GOOD + 'access = "paid"\n', r"acme\.toml:5: access: Input should be 'payg', 'subscription'"),
        (
            GOOD + 'aliases = ["az.ai.openai"]\n',
            r"azure\.toml:\d+: aliases: az.ai.openai is already claimed in acme\.toml:5",
        ),
        (
            GOOD + '[[hosts]]\nhost = "api.groq.com"\n',
            r"groq\.toml:\d+: hosts: api.groq.com is already claimed in acme\.toml:5",
        ),
        (
            GOOD + '[[hosts]]\nhost = "a.example"\npath = "v1/"\n',
            r"acme\.toml:7: hosts\[0\]\.path: .*starts with /",
        ),
        (
            GOOD + "[[grammars]]\nregex = '('\n",
            r"acme\.toml:6: grammars\[0\]\.regex: .*not a regular expression",
        ),
        (
            GOOD + "[[hosts]]\nhost = 'a.example'\n[[hosts]]\nhost = 'a.example'\n",
            r"acme\.toml:7: hosts: a\.example is already claimed in acme\.toml:5",
        ),
        (
            GOOD + "credentials = [\n  { prefix = 'xx-', access = 'payg', shared_with = 'xai' },\n]\n"
            "statements = [{ key = 'auth_mode', value = 'chatgpt', access = 'payg' }]\n",
            r"openai\.toml:\d+: statements: auth_mode=chatgpt is already claimed in acme\.toml:8",
        ),
        (
            GOOD + "markers = [\n  { side = 'reply', header = 'x', access = 'payg' },\n]\n",
            r"acme\.toml:6: markers\[0\]\.side: Input should be 'request' or 'response'",
        ),
        (GOOD + "access payg\n", r"acme\.toml:5: not TOML: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(data: Path, text: str, told: str) -> None:
    (data / "providers" / "acme.toml").write_text(text)
    with pytest.raises(ProviderDataError, match=told):
        load_book(data)


def test_every_wrong_place_is_told_at_once_and_no_value(data: Path) -> None:
    pasted = "sk-" + "p" * 20
    (data / "providers" / "acme.toml").write_text(GOOD + f'access = "{pasted}"\nplan = 3\n')
    with pytest.raises(ProviderDataError) as caught:
        load_book(data)
    assert str(caught.value).count("acme.toml") == 2 and pasted not in str(caught.value)


def test_a_lab_names_providers_that_exist(data: Path) -> None:
    (data / "providers" / "cursor.toml").unlink()
    with pytest.raises(ProviderDataError, match=r"labs\.toml:\d+: lab cursor: providers: cursor has no file"):
        load_book(data)


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("anthropic", "anthropic"),
        ("aws.bedrock", "amazon-bedrock"),
        ("azure.ai.inference", "azure"),
        ("azure.ai.openai", "azure"),
        ("cohere", "cohere"),
        ("deepseek", "deepseek"),
        ("gcp.gemini", "google"),
        ("gcp.gen_ai", "google"),
        ("gcp.vertex_ai", "google-vertex"),
        ("groq", "groq"),
        ("ibm.watsonx.ai", "watsonx"),
        ("mistral_ai", "mistral"),
        ("openai", "openai"),
        ("perplexity", "perplexity"),
        ("x_ai", "xai"),
        ("az.ai.inference", "azure"),
        ("az.ai.openai", "azure"),
        ("vertex_ai", "google-vertex"),
        ("gemini", "google"),
        ("xai", "xai"),
    ],
)
def test_every_provider_that_the_conventions_name_is_known(name: str, provider: str) -> None:
    """The values of gen_ai.provider.name, and those that gen_ai.system had before."""
    claim = Resolver(load_book()).resolve(Evidence(request_model="some-model", provider_name=name))
    assert claim.provider == provider
