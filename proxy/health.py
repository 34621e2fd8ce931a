"""Which targets are better left alone for a while, by what they answered lately.

A target that asks for patience gets it (`Retry-After`, else a moment); one that fails time after time is
tried again only now and then. Kept in memory: a restart forgives. It only orders the targets of a route:
where there is no other, the provider itself decides.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from proxy.exchange import CredentialKind, Target
from proxy.failure import Failure, FailureKind

__all__ = ["Health"]

DEFAULT_WAIT_S: Final = {
    FailureKind.RATE_LIMIT: 15.0,
    FailureKind.OVERLOADED: 15.0,
    FailureKind.PLAN_LIMIT: 600.0,
    FailureKind.BILLING: 600.0,
    FailureKind.AUTH: 60.0,
}
MAX_WAIT_S: Final = 6 * 3600.0
FAILURES_TO_OPEN: Final = 5
OPEN_S: Final = 30.0
MAX_TARGETS: Final = 4096
_OF_THE_KEY: Final = frozenset(
    {FailureKind.RATE_LIMIT, FailureKind.PLAN_LIMIT, FailureKind.BILLING, FailureKind.AUTH}
)
_FAULTS: Final = frozenset({FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.NETWORK})

Key = tuple[str, str, str | None, str, int | None]


@dataclass(slots=True)
class _State:
    until_s: float = 0.0
    why: str = ""
    faults: int = 0


class Health:
    """What is known of targets, by provider, access, account and model. Limits and refusals belong to the key
    that opens the door: where that is the caller's own they are no fault of another's.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[Key, _State] = OrderedDict()

    def resting(self, target: Target) -> str | None:
        """Why a target is better left alone now; None if it is not."""
        now = time.monotonic()
        states = (state for key in _keys(target) if (state := self._states.get(key)) is not None)
        late = (
            f"{state.why}, for {state.until_s - now:.0f} s more" for state in states if state.until_s > now
        )
        return next(late, None)

    def answered(self, target: Target) -> None:
        """It served a call."""
        for key in _keys(target):
            self._states.pop(key, None)

    def failed(self, target: Target, failure: Failure) -> None:
        """It did not."""
        shared, own = _keys(target)
        key = own if failure.kind in _OF_THE_KEY else shared
        state = self._states.setdefault(key, _State())
        self._states.move_to_end(key)
        if len(self._states) > MAX_TARGETS:
            self._states.popitem(last=False)
        if failure.kind in DEFAULT_WAIT_S:
            wait = failure.retry_after_s or DEFAULT_WAIT_S[failure.kind]
            self._rest(state, wait, failure)
        elif failure.kind in _FAULTS:
            state.faults += 1
            if state.faults >= FAILURES_TO_OPEN:
                self._rest(state, OPEN_S, failure)

    def _rest(self, state: _State, wait_s: float, failure: Failure) -> None:
        state.until_s = time.monotonic() + min(wait_s, MAX_WAIT_S)
        state.why = failure.kind.replace("_", " ")


def _keys(target: Target) -> tuple[Key, Key]:
    """What a target's faults are known by, and what the limits of its key are."""
    shared = target.provider, target.access, target.account, target.model
    own = hash(target.credential) if target.credential_kind is CredentialKind.CALLER else None
    return (*shared, None), (*shared, own)
