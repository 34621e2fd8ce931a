"""Every case that a peer was seen to handle: we do the same, or say why not."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.proxy_cases import FIXTURES, Case, agrees, cases

LISTED = tomllib.loads((FIXTURES / "differences.toml").read_text())
DIFFERENT = {case: entry["why"] for entry in LISTED["difference"] for case in entry["cases"]}
CASES = cases()
# How many cases each of the peer's tables has.
TABLES = {
    "usage_parsing": 43,
    "sse_streams": 77,
    "format_anthropic": 157,
    "format_google": 100,
    "format_responses": 184,
    "error_mapping": 103,
    "error_taxonomy": 98,
    "endpoints_regions": 192,
    "secret_redaction": 46,
    "url_safety": 81,
    "caller_and_session": 29,
    "routing_fallback_chain": 27,
    "limits": 87,
    "subscription_config": 104,
    "pricing_cost": 57,
    "provider_inference": 106,
    "qualified_model_ids": 106,
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.id not in DIFFERENT], ids=lambda case: case.id
)
def test_a_case_is_met(case: Case) -> None:
    assert agrees(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.id in DIFFERENT], ids=lambda case: case.id)
def test_a_difference_is_one(case: Case) -> None:
    assert not agrees(case), f"no difference any more: {DIFFERENT[case.id]}"


def test_every_case_of_the_peer_is_asked_or_has_no_counterpart() -> None:
    asked = [case.id for case in CASES]
    without = [one for entry in LISTED["not_ours"] for span in entry["cases"] for one in _spelled(span)]
    assert len(set(asked)) == len(asked) and not set(asked) & set(without)
    everything = {f"{table}-{number:04}" for table, count in TABLES.items() for number in range(1, count + 1)}
    assert set(asked) | set(without) == everything


def test_every_reason_is_given_once_and_is_about_cases_that_are_asked() -> None:
    listed = [case for entry in LISTED["difference"] for case in entry["cases"]]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= {case.id for case in CASES}
    assert all(len(entry["why"]) > 20 for entry in (*LISTED["difference"], *LISTED["not_ours"]))


def _spelled(span: str) -> list[str]:
    """`table-0001..0003` as ids."""
    found = re.fullmatch(r"(\w+)-(\d{4})(?:\.\.(\d{4}))?", span)
    assert found, span
    first, last = int(found[2]), int(found[3] or found[2])
    return [f"{found[1]}-{number:04}" for number in range(first, last + 1)]
