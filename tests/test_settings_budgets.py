"""Budgets in the settings file: exact, strict, the operator's own, and followed at the next start."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path

import pytest

from tests.house import House
from tollbook.settings_budgets import read_budgets
from tollbook.settings_load import SettingsError, load
from tollbook.settings_page import reference_page


def test_amounts_may_be_numbers_and_are_exact() -> None:
    budgets, faults = read_budgets(
        """
        [[budgets]]
        id = "a"
        limit = 0.1
        period = "day"
        per_call = 1e-3
        thresholds = [{ at = 0.8, action = "notify" }, { at = 1, action = "deny" }]
        [[budgets]]
        id = "b"
        limit = "25.50"
        period = "first_use:5h"
        [budgets.scope]
        team = "core"
        labels = { customer = "x" }
        """,
        file="tollbook.toml",
    )
    assert faults == []
    assert (budgets[0].limit, budgets[0].per_call) == (Decimal("0.1"), Decimal("0.001"))
    assert [each.at for each in budgets[0].thresholds] == [Decimal("0.8"), Decimal(1)]
    assert budgets[1].scope.dimensions() == {"team": "core", "labels.customer": "x"}
    assert {each.origin for each in budgets} == {"settings"}


def test_every_fault_is_told_with_file_line_and_key_and_without_values() -> None:
    _, faults = read_budgets(
        "[[budgets]]\n"  # 1
        'id = "a"\n'
        'limit = "sk-ant-secret"\n'  # 3
        'period = "fortnight"\n'  # 4
        "[[budgets]]\n"  # 5
        "limit = 1\n"
        'period = "day"\n'
        'scpoe = "sk-ant-secret"\n'  # 8
        "[[budgets]]\n"
        'id = "a"\n'  # 10
        "limit = -1\n"  # 11
        'period = "day"\n'
        'origin = "api"\n'  # 13
        "scope = { team = 1.5 }\n",  # 14
        file="mine.toml",
    )
    told = "\n".join(faults)
    for sentence in (
        "mine.toml, line 3: budgets[0].limit must be a decimal string",
        "mine.toml, line 4: budgets[0].period must be minute, hour, day",
        "mine.toml, line 5: budgets[1].id is missing",
        "mine.toml, line 8: budgets[1].scpoe unknown key; did you mean scope?",
        "mine.toml, line 11: budgets[2].limit must be a decimal string",
        "mine.toml, line 13: budgets[2].origin is left out",
        "mine.toml, line 14: budgets[2].scope.team Input should be a valid string",
    ):
        assert sentence in told
    assert "secret" not in told


def test_an_id_is_given_once() -> None:
    text = '[[budgets]]\nid = "a"\nlimit = 1\nperiod = "day"\n'
    assert read_budgets(text + text, file="f")[1] == [
        "f, line 6: budgets[1].id is the id of another budget above"
    ]
    assert read_budgets("[budgets]\n", file="f")[1] == [
        "f, line 1: budgets are written as tables [[budgets]]"
    ]


def test_they_are_part_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "tollbook.toml"
    path.write_text('[server]\nhttp_port = 1\n[[budgets]]\nid = "a"\nlimit = 1\nperiod = "day"\n')
    assert [each.id for each in load(config=path).settings.budgets] == ["a"]
    path.write_text('[[budgets]]\nid = "a"\nlimit = 0\nperiod = "day"\n')
    with pytest.raises(
        SettingsError, match=r"tollbook.toml, line 3: budgets\[0\].limit must be greater than 0"
    ):
        load(config=path)


def test_the_example_of_the_reference_is_right() -> None:
    [example] = reference_page().partition("```toml\n")[2].split("```")[:1]
    budgets, faults = read_budgets(example, file="f")
    assert (len(budgets), faults) == (2, [])


def _refused(house: House, method: str, path: str, body: object = None) -> str:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        house.http + path, content, {"content-type": "application/json"}, method=method
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    with refused.value as answer:
        assert answer.status == 409
        told: str = json.load(answer)["detail"]
        return told


def test_a_house_follows_its_settings_and_guards_them(tmp_path: Path) -> None:
    settings = tmp_path / "tollbook.toml"
    first = '[[budgets]]\nid = "{}"\nlimit = {}\nperiod = "day"\n'
    settings.write_text(first.format("kept", 10) + first.format("gone", 5))
    with House(tmp_path / "data", "--config", str(settings)) as house:
        house.wait_ready()
        own = {"id": "own", "limit": "1", "period": "day"}
        house.post("/api/v1/budgets", own)
        check = {"estimate": {"usd": "0.5"}, "reserve": True, "idempotency_key": "k"}
        held = house.post("/api/v1/budgets/check", check)
        assert {each["id"]: each["limit"] for each in held["budgets"]} == {
            "gone": "5",
            "kept": "10",
            "own": "1",
        }
        for method, path, body in (
            ("DELETE", "/api/v1/budgets/kept", None),
            ("PUT", "/api/v1/budgets/kept", {"limit": "99", "period": "day"}),
            ("POST", "/api/v1/budgets", {"id": "kept", "limit": "99", "period": "day"}),
        ):
            assert "settings file" in _refused(house, method, path, body)
        command = [sys.executable, "-m", "tollbook.cli", "budget", "rm", "kept", "--url", house.http]
        removed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert removed.returncode == 1
        assert "settings file" in removed.stderr
        settings.write_text(first.format("kept", 20) + first.format("own", 2))
        house.kill()
        house.restart()
        house.wait_ready()
        budgets = {each["id"]: each for each in house.get("/api/v1/budgets")["budgets"]}
        assert {name: each["limit"] for name, each in budgets.items()} == {"kept": "20", "own": "2"}
        assert {each["origin"] for each in budgets.values()} == {"settings"}
        assert {each["reserved"] for each in budgets.values()} == {"0.5"}
        again = house.post("/api/v1/budgets/check", check)
        assert again["reservation_id"] == held["reservation_id"]
        house.wait_published()
        assert house.published("SELECT id, origin FROM budgets ORDER BY id") == [
            ("kept", "settings"),
            ("own", "settings"),
        ]
