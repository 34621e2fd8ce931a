"""Where live calls go: every endpoint is complete, and is the door that its own provider is known by."""

from __future__ import annotations

import re
from itertools import chain
from urllib.parse import urlsplit

import pytest

from catalog.doors import Doors, parse_address
from catalog.endpoints import Endpoint, EndpointBook
from catalog.errors import EndpointError
from catalog.provider_book import load_book

BOOK = load_book()
ENDPOINTS = EndpointBook(BOOK)
ALL = list(chain.from_iterable(ENDPOINTS.find(provider) for provider in BOOK.providers))
TOLD = {"region": "us-central1"} | dict.fromkeys(
    ("project", "resource", "account", "gateway", "product"), "acme"
)
NO_HTTP_API_OF_ITS_OWN = {"cursor", "gitlab", "local", "merge-gateway", "qvac", "salad-cloud"}
NEEDS_MORE_THAN_A_URL = {"sap-ai-core", "snowflake-cortex", "watsonx"}


def test_every_provider_has_an_endpoint_or_a_reason_to_have_none() -> None:
    without = {provider for provider in BOOK.providers if not ENDPOINTS.find(provider)}
    assert without == NO_HTTP_API_OF_ITS_OWN | NEEDS_MORE_THAN_A_URL
    assert all(endpoint.source and endpoint.checked for endpoint in ALL)


@pytest.mark.parametrize("endpoint", [e for e in ALL if "host" not in e.variables], ids=lambda e: e.base_url)
def test_an_endpoint_is_a_door_of_its_provider(endpoint: Endpoint) -> None:
    """What goes through the endpoint is recognised as this provider's when telemetry tells of its address."""
    url = endpoint.url(model="some/model-1", stream=True, variables=TOLD)
    assert not re.search(r"[{}\s]|//.*//", url)
    server = parse_address(url)
    assert server is not None
    if server.is_private:
        assert endpoint.access == "local" and endpoint.auth == "none"
        return
    door = Doors(BOOK).at(server)
    assert door is not None, f"{url} is nobody's door"
    provider = BOOK.providers[endpoint.provider]
    own = door.provider.id in (endpoint.provider, provider.variant_of)
    shared = any(c.shared_with == door.provider.id for c in provider.credentials) or (
        door.provider.access in ("unknown", "payg") and urlsplit(url).netloc == door.facts.host
    )
    assert own or shared
    if own and door.facts.access and door.facts.access != "unknown":
        assert endpoint.access == door.facts.access


def test_a_plan_and_its_metered_twin_are_two_endpoints() -> None:
    metered, plan = (
        ENDPOINTS.find("anthropic", access=access, format="anthropic-messages")[0]
        for access in ("payg", "subscription")
    )
    assert metered.auth_headers("k") == {"x-api-key": "k"} and dict(metered.headers)["anthropic-version"]
    assert plan.auth_headers("k") == {"authorization": "Bearer k"} and "anthropic-beta" in dict(plan.headers)
    codex = ENDPOINTS.find("openai", access="subscription")[0]
    assert (codex.url(), codex.plan) == ("https://chatgpt.com/backend-api/codex/responses", "chatgpt")
    assert [e.format for e in ENDPOINTS.find("glm-coding-plan")] == ["openai-chat", "anthropic-messages"]
    assert ENDPOINTS.find("nobody") == ()


def test_a_url_is_made_of_what_is_told_and_nothing_else() -> None:
    bedrock = ENDPOINTS.find("aws.bedrock", format="bedrock")[0]
    assert bedrock.variables == ("region",)
    assert bedrock.url(model="us.anthropic.claude-opus-4-5-v1:0", stream=True, variables=TOLD) == (
        "https://bedrock-runtime.us-central1.amazonaws.com/model/us.anthropic.claude-opus-4-5-v1:0/converse-stream"
    )
    with pytest.raises(EndpointError, match="amazon-bedrock: the endpoint's region is not set"):
        bedrock.url(model="m")
    with pytest.raises(EndpointError, match="region may hold letters"):
        bedrock.url(model="m", variables={"region": "x.evil.example/"})
    with pytest.raises(EndpointError, match="model id makes no path"):
        bedrock.url(model="..", variables=TOLD)
    assert "/model/..%2F..%2Fadmin/" in bedrock.url(model="../../admin", variables=TOLD)


def test_a_region_may_have_a_host_of_another_form() -> None:
    [vertex] = [e for e in ENDPOINTS.find("google-vertex", format="vertex") if "region" in e.variables]
    hosts = {
        region: urlsplit(vertex.url(model="m", variables={"region": region, "project": "acme"})).netloc
        for region in ("global", "europe-west4")
    }
    assert hosts == {
        "global": "aiplatform.googleapis.com",
        "europe-west4": "europe-west4-aiplatform.googleapis.com",
    }


def test_the_kind_of_a_key_is_told_and_never_the_key() -> None:
    assert ENDPOINTS.key_kind("minimax", "sk-cp-" + "x" * 20) == "sk-cp-"
    assert ENDPOINTS.key_kind("minimax", "sk-api-" + "x" * 20) == "sk-api-"
    assert ENDPOINTS.key_kind("anthropic", "sk-ant-oat01-" + "x" * 20) == "sk-ant-oat"
    assert ENDPOINTS.key_kind("anthropic", "something else") is None


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("bedrock-runtime.eu-west-1.amazonaws.com", "amazon-bedrock"),
        ("vpce-0a1.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "amazon-bedrock"),
        ("runtime.sagemaker.eu-west-1.amazonaws.com", None),
        ("abc.execute-api.eu-west-1.amazonaws.com", None),
        ("europe-west4-aiplatform.googleapis.com", "google-vertex"),
        ("aiplatform.eu.rep.googleapis.com", "google-vertex"),
        ("storage.googleapis.com", None),
        ("eu.api.openai.com", "openai"),
        ("api.openai.com.evil.example", None),
        ("evilapi.openai.com", None),
    ],
)
def test_a_host_is_compared_by_whole_labels(host: str, provider: str | None) -> None:
    server = parse_address(f"https://{host}/v1")
    door = Doors(BOOK).at(server) if server else None
    assert (door.provider.id if door else None) == provider
