"""Routes: which model name leads to which targets, in which order, and what may follow what.

    [[route]]
    name = "code"
    models = ["code", "claude-sonnet-*"]
    [[route.target]]
    provider = "zai-coding-plan"
    model = "glm-4.6"
    [[route.target]]
    provider = "anthropic"
    may_cost = true                 # a metered target after a plan's
    when = { max_input_tokens = 200000, min_budget_left = "0.1" }

The first route that fits is taken, exact names before patterns. Targets are tried in order; neighbours with a
`weight` share their place by chance. What fails goes on to the next target only for the kinds of failure in
`fall_on`, and from a plan to a metered door only where that target says `may_cost`. Read strictly; API and
file say the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints, field_validator, model_validator

from proxy.doors import Name, Strict
from proxy.exchange import CredentialKind, Exchange
from proxy.failure import FailureKind

__all__ = ["Route", "RouteTable", "TargetRule", "When"]

RouteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ClockTime = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]

Fraction = Annotated[str, StringConstraints(pattern=r"^(0(\.\d{1,6})?|1(\.0{1,6})?)$")]
"""A decimal from 0 to 1, written as text, as amounts are."""

ANOTHER_MAY: Final = tuple(kind for kind in FailureKind if kind.another_may_serve)


class When(Strict):
    """What a call must be like for a target, and what must be left for it; what is not said does not matter.
    Times: `since` until `until`, over midnight where `until` is earlier.
    """

    headers: dict[Name, Name] = Field(default_factory=dict)
    """Header -> value, `*` for anything."""
    min_input_tokens: Annotated[int, Field(ge=0)] | None = None
    max_input_tokens: Annotated[int, Field(ge=0)] | None = None
    tools: bool | None = None
    images: bool | None = None
    since: ClockTime | None = None
    until: ClockTime | None = None
    time_zone: Name = "UTC"
    min_budget_left: Fraction | None = None
    """What every budget that covers the call must have left at least, as a fraction of its limit."""
    plan_window_left: bool | None = None
    """Whether every window of the target's plan must have something left, or one of them must be used up."""

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError("is not a time zone such as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _both_times(self) -> When:
        if (self.since is None) != (self.until is None):
            raise ValueError("since and until go together")
        if self.since is not None and self.since == self.until:
            raise ValueError("since and until are the same: leave both out for the whole day")
        return self

    def unmet(self, exchange: Exchange, *, input_tokens: int, now: datetime) -> str | None:
        """The first condition that a call does not meet, in words; None if it meets all."""
        return next(self._unmet(exchange, input_tokens, now), None)

    def _unmet(self, exchange: Exchange, input_tokens: int, now: datetime) -> Iterator[str]:
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers}
        for name, pattern in self.headers.items():
            if not fnmatchcase(told.get(name.lower(), ""), pattern):
                yield f"header {name} is not {pattern}"
        if self.min_input_tokens is not None and input_tokens < self.min_input_tokens:
            yield f"about {input_tokens} input tokens are fewer than {self.min_input_tokens}"
        if self.max_input_tokens is not None and input_tokens > self.max_input_tokens:
            yield f"about {input_tokens} input tokens are more than {self.max_input_tokens}"
        for what in ("tools", "images"):
            wanted = getattr(self, what)
            if wanted is not None and wanted is not getattr(exchange.said, what):
                yield f"the call has {'no ' if wanted else ''}{what}"
        if not self._is_time(now):
            yield f"it is not between {self.since} and {self.until} {self.time_zone}"

    def _is_time(self, now: datetime) -> bool:
        if self.since is None or self.until is None:
            return True
        at = now.astimezone(ZoneInfo(self.time_zone)).time()
        since, until = time.fromisoformat(self.since), time.fromisoformat(self.until)
        return since <= at < until if since <= until else at >= since or at < until


class TargetRule(Strict):
    """One target: provider, and what of model, access, account and key is not left open."""

    provider: Name
    model: Name | None = None
    access: Name | None = None
    account: Name | None = None
    credential: CredentialKind | None = Field(default=None, strict=False)
    weight: Annotated[int, Field(ge=1, le=1000)] | None = None
    may_cost: bool = False
    when: When = When()


class Route(Strict):
    """Names of models and the targets that serve them. With `degrade` a target that no budget is left for is
    passed over for the next.
    """

    name: RouteName
    models: Annotated[list[Name], Field(min_length=1, max_length=64)]
    target: Annotated[list[TargetRule], Field(min_length=1, max_length=16)]
    fall_on: list[Annotated[FailureKind, Field(strict=False)]] = Field(default=list(ANOTHER_MAY))
    degrade: bool = False

    def fits(self, model: str) -> bool:
        """Whether the route is for a model name as the caller wrote it."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def ordered(self, chance: random.Random) -> list[TargetRule]:
        """The targets in the order they are tried."""
        ordered: list[TargetRule] = []
        for weighted, group in groupby(self.target, key=lambda rule: rule.weight is not None):
            rules = list(group)
            ordered += _shuffled(rules, chance) if weighted else rules
        return ordered


def _shuffled(rules: list[TargetRule], chance: random.Random) -> list[TargetRule]:
    """In random order, each as likely to be first as its weight says."""
    drawn = [(chance.random() ** (1.0 / (rule.weight or 1)), rule) for rule in rules]
    return [rule for _, rule in sorted(drawn, key=lambda each: each[0], reverse=True)]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes, in order of precedence."""

    routes: Sequence[Route] = ()

    def find(self, model: str, *, named: str | None = None) -> Route | None:
        """The route that the caller named, else the first that fits: exact names before patterns."""
        if not self.routes:
            return None
        if named is not None:
            return next((route for route in self.routes if route.name == named), None)
        exact = (route for route in self.routes if model in route.models)
        return next(exact, None) or next((route for route in self.routes if route.fits(model)), None)

    def with_routes(self, own: Mapping[str, Route]) -> RouteTable:
        """The same with others before them, which take the place of those of their names."""
        return RouteTable([*own.values(), *(route for route in self.routes if route.name not in own)])


_PATTERN: Final = re.compile(r"[*?\[]")


def aliases(table: RouteTable) -> list[str]:
    """The exact model names that routes answer to."""
    return list(dict.fromkeys(m for route in table.routes for m in route.models if not _PATTERN.search(m)))
