"""Before a call: is there budget for it? What it may need at most is held until its record settles it.

The estimate is made to be passed by no call: a token for every four bytes of the request (images count as
what models take them for), and as much output as was asked for. Where no budget covers the call nothing is
held and nothing waits for a disk.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from billing.budget import EXACT, BudgetError, CheckReply, CheckRequest
from billing.plan_advice import used_up_for
from billing.reservation_desk import ReservationDesk
from proxy.exchange import Exchange, Target
from proxy.failure import FailureKind
from proxy.refusal import Refused
from proxy.routes import When

__all__ = ["Allowance", "input_estimate"]

log = logging.getLogger("tollbook.proxy")

BYTES_PER_TOKEN: Final = 4
IMAGE_TOKENS: Final = 1600
ASSUMED_OUTPUT_TOKENS: Final = 4096
"""Where the caller sets no limit."""
HELD_S: Final = 3600
_ENCODED: Final = re.compile(rb"[A-Za-z0-9+/=]{2048,}")


class Allowance:
    """Asks the desk for each attempt. Raises Refused."""

    def __init__(self, desk: ReservationDesk) -> None:
        self._desk = desk

    async def reserve(self, exchange: Exchange, target: Target) -> str | None:
        """The reservation that holds what the call may need; None where no budget covers it."""
        if exchange.operation.counts_tokens:
            return None
        if not self._desk.ready:
            raise Refused(FailureKind.OVERLOADED, "tollbook is starting; ask again", retry_after_s=1)
        if self._desk.book.empty:
            return None
        request = _check(exchange, target)
        try:
            if not self._desk.book.check(request, datetime.now(UTC), self._desk.quotes).budgets:
                return None
            reply = await self._desk.check(request)
        except BudgetError as error:
            raise Refused(FailureKind.OVERLOADED, str(error), retry_after_s=error.retry_after_s) from None
        except Exception:  # the disk: what cannot be written down is not promised
            log.exception("a reservation could not be written")
            sentence = "what the call may need could not be reserved; ask again"
            raise Refused(FailureKind.OVERLOADED, sentence, retry_after_s=2) from None
        if reply.decision == "deny":
            raise _denied(reply)
        return reply.reservation_id

    def unmet(self, exchange: Exchange, target: Target, when: When) -> str | None:
        """What a target asks to be left and is not, in words; None if nothing is missing. From memory."""
        if when.min_budget_left is None and when.plan_window_left is None:
            return None
        if not self._desk.ready:
            return "what is left is not known yet: tollbook is starting"
        return self._budget_short(exchange, target, when) or self._window_short(exchange, target, when)

    def _budget_short(self, exchange: Exchange, target: Target, when: When) -> str | None:
        if when.min_budget_left is None or self._desk.book.empty:
            return None
        request, least = _check(exchange, target), Decimal(when.min_budget_left)
        for each in self._desk.book.check(request, datetime.now(UTC), self._desk.quotes).budgets:
            if each.remaining is None:
                return f"what is left of budget {each.id} is not known"
            if Decimal(each.remaining) < EXACT.multiply(least, Decimal(each.limit)):
                return f"of budget {each.id} {each.remaining} of {each.limit} is left"
        return None

    def _window_short(self, exchange: Exchange, target: Target, when: When) -> str | None:
        if when.plan_window_left is None:
            return None
        told = _scope(exchange, target)
        used_up = used_up_for(self._desk.used_up, told, datetime.now(UTC))
        if when.plan_window_left:
            return used_up[0].sentence() if used_up else None
        return None if used_up else "every window of its plan has something left"

    async def release(self, reservation_id: str) -> None:
        """Nothing was used of it. Raises nothing: whoever lets go has an answer to give, and what cannot be
        let go (the disk) expires.
        """
        try:
            await self._desk.release(reservation_id)
        except Exception as error:
            log.warning("a reservation stays until it expires: %s", error)


def _denied(reply: CheckReply) -> Refused:
    resets = [each.resets_at for each in reply.budgets if each.action == "deny" and each.resets_at]
    when = f"; it resets at {max(resets).isoformat()}" if resets else ""
    wait = reply.retry_after_s
    code = "budget_exceeded"
    return Refused(FailureKind.BUDGET_EXCEEDED, f"{reply.reason}{when}", code=code, retry_after_s=wait)


def _scope(exchange: Exchange, target: Target) -> dict[str, Any]:
    """What budgets and plans know a call by."""
    caller = exchange.caller
    scope: dict[str, Any] = {**caller.said, "provider": target.provider}
    if caller.service and "agent" not in scope:
        scope["agent"] = caller.service
    if exchange.session_id:
        scope["session_id"] = exchange.session_id
    if target.account and "account_id" not in scope:
        scope["account_id"] = target.account
    if target.access != "unknown":
        scope["access"] = target.access
    if caller.labels:
        scope["labels"] = dict(list(caller.labels.items())[:8])
    return scope


def _check(exchange: Exchange, target: Target) -> CheckRequest:
    output = exchange.said.max_output_tokens
    return CheckRequest.model_validate(
        {
            "scope": _scope(exchange, target),
            "model": target.model[:256],
            "estimate": {
                "input_tokens": input_estimate(exchange.body),
                "output_tokens": min(ASSUMED_OUTPUT_TOKENS if output is None else output, 10**9)
                * exchange.said.choices,
            },
            "reserve": True,
            "ttl_s": HELD_S,
        }
    )


def input_estimate(body: bytes) -> int:
    """Tokens of a request, from its bytes; what is encoded (images, files) counts as images do."""
    encoded = [found.end() - found.start() for found in _ENCODED.finditer(body)]
    return (len(body) - sum(encoded)) // BYTES_PER_TOKEN + IMAGE_TOKENS * len(encoded) + 1
