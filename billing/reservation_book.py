"""Every reservation that may still count, found by id and by idempotency key, and those that ended lately.

Expiry needs no timer: a heap of moments is looked at before every answer. What has ended is remembered for a
day, at most MAX_REMEMBERED of it, so that what is repeated is answered as before; memory is bounded.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from billing.reservation_hold import Hold

__all__ = ["MAX_REMEMBERED", "REMEMBER_S", "HoldBook"]

MAX_REMEMBERED = 50_000
REMEMBER_S = 86_400
_SPARE_MOMENTS = 1024
_US = 1_000_000


class HoldBook:
    """The reservations of one front. Not for use by several threads."""

    __slots__ = ("_by_key", "_ended", "_expiries", "_open")

    def __init__(self) -> None:
        self._open: dict[str, Hold] = {}
        self._ended: OrderedDict[str, Hold] = OrderedDict()
        self._by_key: dict[str, Hold] = {}
        self._expiries: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._open)

    def sizes(self) -> dict[str, int]:
        """How many of everything is kept in memory."""
        kept = {
            "open": self._open,
            "remembered": self._ended,
            "keys": self._by_key,
            "moments": self._expiries,
        }
        return {name: len(each) for name, each in kept.items()}

    def get(self, reservation_id: str) -> Hold | None:
        """The reservation of that id, open or ended lately."""
        return self._open.get(reservation_id) or self._ended.get(reservation_id)

    def is_open(self, reservation_id: str) -> bool:
        """Whether it may still count."""
        return reservation_id in self._open

    def by_key(self, key: str) -> Hold | None:
        """The reservation made under an idempotency key."""
        return self._by_key.get(key)

    def open(self) -> Iterator[Hold]:
        """Those that may still count."""
        return iter(self._open.values())

    def add(self, hold: Hold) -> None:
        """Enters a reservation, or one that ended and counts again."""
        known = self._open.get(hold.id) or self._ended.pop(hold.id, None)
        if known is not None and known is not hold:
            self.drop(known)
        self._open[hold.id] = hold
        if hold.key is not None:
            self._by_key[hold.key] = hold
        if not hold.expired:
            heapq.heappush(self._expiries, (hold.expires_us, hold.id))
            self._compact()

    def drop(self, hold: Hold) -> None:
        """Takes out a reservation that was never promised."""
        self._open.pop(hold.id, None)
        self._ended.pop(hold.id, None)
        if hold.key is not None and self._by_key.get(hold.key) is hold:
            del self._by_key[hold.key]

    def due(self, now_us: int) -> Iterator[Hold]:
        """Those that expire now, each once."""
        while self._expiries and self._expiries[0][0] <= now_us:
            expires_us, reservation_id = heapq.heappop(self._expiries)
            hold = self._open.get(reservation_id)
            if hold is not None and not hold.expired and hold.expires_us == expires_us:
                hold.expired = True
                yield hold

    def end(self, hold: Hold, now_us: int) -> None:
        """Moves what adds nothing any more to what is remembered."""
        if self._open.pop(hold.id, None) is None:
            return
        if hold.state != "expired":  # that may still be settled late, and must be priced then
            hold.forget()
        hold.counted = {}
        self._ended[hold.id] = hold
        self._forget(now_us)

    def _forget(self, now_us: int) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if len(self._ended) <= MAX_REMEMBERED and oldest.expires_us + REMEMBER_S * _US > now_us:
                return
            self.drop(oldest)

    def _compact(self) -> None:
        """Drops the moments of what ended before its time."""
        if len(self._expiries) > 2 * len(self._open) + _SPARE_MOMENTS:
            self._expiries = [(each.expires_us, each.id) for each in self._open.values() if not each.expired]
            heapq.heapify(self._expiries)
