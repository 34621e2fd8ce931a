"""The real SDKs of OpenAI and Anthropic for Node at a real house: streams, tools, errors and leaving."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_answers import TEXT
from tests.node import JS, installed
from tests.test_proxy_carry import ANTHROPIC_KEY, OPENAI_KEY, Place, place_in


@pytest.fixture(scope="module")
def packages() -> Path:
    return installed("sdks")


@pytest.fixture(scope="module")
def place(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    del packages  # where there is no Node, no house is built
    with place_in(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.mark.parametrize(
    ("dialect", "key", "path"),
    [
        ("openai", OPENAI_KEY, "/openai/chat/completions"),
        ("responses", OPENAI_KEY, "/openai/responses"),
        ("anthropic", ANTHROPIC_KEY, "/anthropic/messages"),
    ],
)
def test_a_node_sdk(place: Place, packages: Path, dialect: str, key: str, path: str) -> None:
    rows, arrived, left = len(place.calls()), len(place.models.arrived), place.models.left
    script = shutil.copy(JS / "sdks" / "call.mjs", packages)
    command = ["node", script, dialect, place.house.http, key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["whole"], seen["streamed"]) == (TEXT, [TEXT, 5])
    assert seen["tool"] == ["weather", {"city": "Aachen"}, TEXT]
    assert [each[:2] for each in seen["refused"]] == [
        ["BadRequestError", 400],
        ["RateLimitError", 429],
        ["InternalServerError", 500],
    ]
    assert all("told to: status" in message for *_, message in seen["refused"])
    assert seen["left"] in ("APIUserAbortError", "ended")
    came = place.models.arrived[arrived:]
    assert {each.path for each in came} == {path} and len(came) == 8
    assert all("JS" in each.headers["user-agent"] for each in came), "the SDK's own headers go on"
    assert all(key in each.headers.get("x-api-key", each.headers.get("authorization", "")) for each in came)
    place.until(lambda: place.models.left == left + 1, "the provider was left too")
    place.until(lambda: len(place.calls()) == rows + 8, "each call is a row, nothing twice")
    kinds = [call["cost_status"] for call in place.calls()[rows:]]
    assert kinds[:7] == ["priced"] * 4 + ["not_billable"] * 3 and kinds[7] in ("usage_unknown", "priced")
