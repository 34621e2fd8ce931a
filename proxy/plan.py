"""The targets of one call in the order they are tried, and why others are not among them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from proxy.allowance import Allowance, input_estimate
from proxy.choice import Chooser
from proxy.exchange import Exchange, Target
from proxy.failure import Failure, FailureKind
from proxy.health import Health
from proxy.refusal import Refused
from proxy.routes import Route, RouteTable, TargetRule

__all__ = ["PAID", "Plan", "Planner", "Step"]

PAID: Final = frozenset({"payg", "overage", "unknown", "provisioned"})
"""Accesses under which a call costs money of its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """A target, or why there is none; `late` says why it comes after others."""

    target: Target | None
    why_not: str | None = None
    rule: TargetRule | None = None
    late: str | None = None


@dataclass(slots=True)
class Plan:
    """What is tried for one call. Without a route there is one step, and nothing follows it."""

    steps: list[Step]
    route: Route | None = None
    tried: list[Target] = field(default_factory=list)

    def rest(self) -> list[Step]:
        """The steps that have a target and were not tried."""
        return [step for step in self.steps if step.target is not None and step.target not in self.tried]

    def next(self, failed: Failure | None = None) -> Target | None:
        """The target to try now; after a failure only one that the route lets follow."""
        if failed is not None and (self.route is None or failed.kind not in self.route.fall_on):
            return None
        target = next((step.target for step in self.rest()), None)
        if target is not None:
            self.tried.append(target)
        return target


class Planner:
    """Plans by the routes and, where there is none, by the catalogue."""

    def __init__(self, chooser: Chooser, table: RouteTable, health: Health, allowance: Allowance) -> None:
        self.chooser = chooser
        self.table = table
        self._health = health
        self._allowance = allowance
        self._chance = random.Random()  # noqa: S311  # to spread calls, not to guard them

    def plan(self, exchange: Exchange) -> Plan:
        """What is tried for a call. Raises Refused where nothing can be."""
        plan = self.all_steps(exchange)
        if (route := plan.route) is not None and not plan.rest():
            why = "; ".join(f"{step.rule.provider}: {step.why_not}" for step in plan.steps if step.rule)
            sentence = f"no target of the route {route.name!r} can serve this call: {why}"
            raise Refused(FailureKind.INVALID_REQUEST, sentence, code="no_target")
        return plan

    def all_steps(self, exchange: Exchange) -> Plan:
        """The same, also where no step has a target. Raises Refused where there is no route either."""
        route = self.table.find(exchange.model, named=exchange.caller.route)
        if route is not None:
            exchange.route = route.name
            return Plan(self.steps(route, exchange), route)
        if exchange.caller.route is not None:
            sentence = f"there is no route {exchange.caller.route!r}"
            raise Refused(FailureKind.INVALID_REQUEST, sentence, code="no_route")
        return Plan([Step(self.chooser.choose(exchange))])

    def steps(self, route: Route, exchange: Exchange) -> list[Step]:
        """Every target of a route in the order of this call; those that rest come last."""
        tokens, now = input_estimate(exchange.body), datetime.now(UTC)
        steps: list[Step] = []
        covered = False
        for rule in route.ordered(self._chance):
            if unmet := rule.when.unmet(exchange, input_tokens=tokens, now=now):
                steps.append(Step(None, unmet, rule))
                continue
            step = self._step(rule, exchange)
            if covered and step.target is not None and step.target.access in PAID and not rule.may_cost:
                step = Step(None, "it is metered, comes after a plan's, and does not say may_cost", rule)
            covered = covered or self._is_plan(rule, step)
            steps.append(step)
        return sorted(steps, key=lambda step: step.late is not None)

    def _is_plan(self, rule: TargetRule, step: Step) -> bool:
        """Whether a target is, or would be if it could be used, under a plan."""
        if step.target is not None:
            return step.target.access == "subscription"
        provider = self.chooser.catalogue.provider(rule.provider)
        return (rule.access or (provider.access if provider else None)) == "subscription"

    def _step(self, rule: TargetRule, exchange: Exchange) -> Step:
        catalogue = self.chooser.catalogue
        provider = catalogue.provider(rule.provider)
        if provider is None:
            return Step(None, "the catalogue knows no such provider", rule)
        model = rule.model or catalogue.split(exchange.model)[1]
        try:
            target = self.chooser.target(
                *(exchange, provider, model),
                access=rule.access,
                account=rule.account,
                credential=rule.credential,
            )
        except Refused as refused:
            return Step(None, str(refused), rule)
        if missing := self._allowance.unmet(exchange, target, rule.when):
            return Step(None, missing, rule)
        return Step(target, None, rule, self._health.resting(target))
