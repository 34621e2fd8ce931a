"""What would happen to a call, without making it: every target, in order, with what stands against it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from proxy.doors import Name, Strict
from proxy.exchange import CallHead, Exchange, Way
from proxy.failure import FailureKind
from proxy.outgoing import outgoing
from proxy.plan import Planner, Step
from proxy.refusal import Refused
from proxy.wire import operation_of, said

__all__ = ["ExplainRequest", "explain"]


class ExplainRequest(Strict):
    """A call as it might be made. `headers` may hold what the caller would send; a key in it is not kept."""

    model: Name
    path: Name = "/v1/chat/completions"
    headers: dict[Name, Name] = Field(default_factory=dict, max_length=64)
    input_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    tools: bool = False
    images: bool = False


def explain(planner: Planner, asked: ExplainRequest) -> dict[str, Any]:
    """The route, and the steps in the order they would be tried. Raises Refused where nothing would be."""
    exchange = _exchange(asked)
    plan = planner.all_steps(exchange)
    return {
        "model": asked.model,
        "route": plan.route.name if plan.route else None,
        "fall_on": [str(kind) for kind in plan.route.fall_on] if plan.route else [],
        "steps": [_step(step, exchange) for step in plan.steps],
    }


def _exchange(asked: ExplainRequest) -> Exchange:
    operation = operation_of(asked.path)
    if operation is None:
        raise Refused(FailureKind.INVALID_REQUEST, "the path is none of a live call's")
    request: dict[str, Any] = {"model": asked.model, "messages": [{"role": "user", "content": ""}]}
    if asked.tools:
        request["tools"] = [{}]
    headers = [(name.lower().encode(), value.encode()) for name, value in asked.headers.items()]
    return Exchange(
        head=CallHead(operation, asked.path, b"alt=sse", headers),
        said=said(operation, _with_images(request) if asked.images else request),
        body=b" " * (4 * asked.input_tokens),
        request=request,
    )


def _with_images(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "messages": [{"role": "user", "content": [{"type": "image"}]}]}


def _step(step: Step, exchange: Exchange) -> dict[str, Any]:
    target = step.target
    told: dict[str, Any] = {"why_not": step.why_not, "late": step.late}
    if step.rule is not None:
        told |= {"provider": step.rule.provider, "may_cost": step.rule.may_cost}
    if target is None:
        return told
    return told | {
        "provider": target.provider,
        "model": target.model,
        "access": target.access,
        "plan": target.plan,
        "account": target.account,
        "key": str(target.credential_kind),
        "key_kind": target.key_prefix,
        "format": target.endpoint.format,
        "url": outgoing(exchange, Way(target)).url.partition("?")[0],
    }
