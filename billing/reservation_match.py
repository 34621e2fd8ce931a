"""Which call settles which reservation: by the reservation's id, else the response's id, else the trace.

A call settles at most one reservation and a reservation is settled by at most one call. Stronger evidence
takes the place of weaker, whenever it comes; in one trace the oldest reservation goes first. A call that was
known before the reservation was made is never its call. Pure: works on the rows it is given and sets their
`call_id` and `matched_by`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

__all__ = ["Claim", "Matchable", "Matching"]

Tier = Literal["id", "response", "trace"]
_STRENGTH: Final[dict[str, int]] = {"id": 0, "response": 1, "trace": 2}


@dataclass(frozen=True, slots=True)
class Claim:
    """A call that may settle something. `offset` is the journal position of its earliest record; None for a
    call committed earlier, of which `recorded_us` is known instead.
    """

    call_id: str
    reservation_id: str | None = None
    response_id: str | None = None
    trace_id: str | None = None
    offset: int | None = None
    recorded_us: int = 0
    started_us: int = 0


class Matchable(Protocol):
    """What matching needs of a reservation."""

    id: str
    trace_id: str | None
    response_id: str | None
    place_offset: int
    at_us: int
    call_id: str | None
    matched_by: str | None

    def wants_a_call(self, now_us: int) -> bool:
        """Whether a call of its trace is taken for its own: open, or settled and not yet told of."""
        ...


class Matching:
    """The reservations that a commit may touch."""

    def __init__(self, rows: Iterable[Matchable], *, now_us: int) -> None:
        self._now_us = now_us
        self._by_id = {row.id: row for row in rows}
        self._by_call: dict[str, Matchable] = {}
        self._by_trace: dict[str, list[Matchable]] = defaultdict(list)
        self._by_response: dict[str, list[Matchable]] = defaultdict(list)
        for row in sorted(self._by_id.values(), key=_age):
            if row.trace_id is not None:
                self._by_trace[row.trace_id].append(row)
            if row.response_id is not None:
                self._by_response[row.response_id].append(row)
            if row.call_id is not None:
                self._settle_on(row, row.call_id, row.matched_by)

    def move(self, heirs: Mapping[str, str]) -> None:
        """Calls became part of others: their reservations go with them, the strongest and oldest stays."""
        moving = [(row, heirs[call]) for call, row in self._by_call.items() if call in heirs]
        for row, _ in moving:
            if row.call_id is not None:
                del self._by_call[row.call_id]
        for row, heir in sorted(moving, key=lambda each: _age(each[0])):
            self._settle_on(row, heir, row.matched_by)

    def _settle_on(self, row: Matchable, call_id: str, tier: str | None) -> None:
        """The call settles this row, unless it settles a better one."""
        known = self._by_call.get(call_id)
        if (
            known is not None
            and known is not row
            and _rank(known) <= (_STRENGTH[tier or "trace"], *_age(row))
        ):
            row.call_id = row.matched_by = None
            return
        if known is not None and known is not row:
            known.call_id = known.matched_by = None
        row.call_id, row.matched_by = call_id, tier
        self._by_call[call_id] = row

    def claim(self, claims: Sequence[Claim]) -> None:
        """Lets the calls settle what they name, then what shares their response, then their trace."""
        ordered = sorted(claims, key=_order)
        displaced: deque[Claim] = deque()
        for each in ordered:
            row = None if each.reservation_id is None else self._by_id.get(each.reservation_id)
            self._take(each, [] if row is None else [row], tier="id", displaced=displaced)
        for each in ordered:
            if each.reservation_id not in self._by_id:
                rows = self._by_response.get(each.response_id, []) if each.response_id is not None else []
                self._take(each, rows, tier="response", displaced=displaced)
        for each in [*ordered, *displaced]:
            if each.reservation_id not in self._by_id:
                self._take_oldest(each)

    def _take(self, claim: Claim, rows: Sequence[Matchable], *, tier: Tier, displaced: deque[Claim]) -> None:
        own = self._by_call.get(claim.call_id)
        if own is not None and _STRENGTH[own.matched_by or "trace"] <= _STRENGTH[tier]:
            return
        for row in rows:
            loser = row.call_id
            if loser is not None and _STRENGTH[row.matched_by or "trace"] <= _STRENGTH[tier]:
                continue
            if loser is not None:
                del self._by_call[loser]
                displaced.append(Claim(loser, trace_id=row.trace_id, recorded_us=self._now_us))
            if own is not None:
                own.call_id = own.matched_by = None
            row.call_id, row.matched_by = claim.call_id, tier
            self._by_call[claim.call_id] = row
            return

    def _take_oldest(self, claim: Claim) -> None:
        if claim.trace_id is None or claim.call_id in self._by_call:
            return
        for row in self._by_trace.get(claim.trace_id, ()):
            if row.call_id is None and row.wants_a_call(self._now_us) and _may_be(row, claim):
                row.call_id, row.matched_by = claim.call_id, "trace"
                self._by_call[claim.call_id] = row
                return


def _age(row: Matchable) -> tuple[int, int, str]:
    return row.at_us, row.place_offset, row.id


def _rank(row: Matchable) -> tuple[int, int, int, str]:
    return (_STRENGTH[row.matched_by or "trace"], *_age(row))


def _order(claim: Claim) -> tuple[int, int, str]:
    return (claim.offset or 0, claim.started_us, claim.call_id)


def _may_be(row: Matchable, claim: Claim) -> bool:
    """Not if both name a response and not the same, nor if the call was known before the reservation."""
    if row.response_id is not None and claim.response_id is not None:
        return row.response_id == claim.response_id
    if claim.offset is not None:
        return claim.offset > row.place_offset
    return claim.recorded_us >= row.at_us
