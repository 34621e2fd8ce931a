"""A client of the soak: reserves in batches, settles, repeats, releases, forgets; notes what it was told.

`python -m tests.reserve_client URL LOG SEED` runs until it is killed or its standard input ends. Every line
of LOG is one fact: it is written before what is tried, and after what was answered.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
import urllib.parse
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

BATCH = 25
MAX_HELD = 300
TTL_S = 12
SETTLED_WITHIN_S = 4
"""What is older is forgotten and expires: a settlement that comes after expiry counts even where it no longer
fits, so it would prove nothing.
"""
PATIENCE = 600
UNIT = Decimal("0.000001")


class Client:
    """One process with one connection; asks until it is answered."""

    def __init__(self, url: str, log: Path, seed: str) -> None:
        self._place = urllib.parse.urlsplit(url).netloc
        self._log = log.open("a", buffering=1)
        self._name = seed
        self._rng = random.Random(seed)
        self._connection = http.client.HTTPConnection(self._place, timeout=20)
        self._held: list[tuple[str, Decimal, int, float]] = []
        self._keys = 0
        self._denied = False
        self.stopping = threading.Event()

    def note(self, **fact: Any) -> None:
        self._log.write(json.dumps({**fact, "at": time.time()}) + "\n")

    def ask(self, path: str, body: Any) -> Any:
        """The answer, however often the server dies meanwhile; not after the soak has ended."""
        patience = PATIENCE
        while patience:
            patience -= self.stopping.is_set()
            try:
                headers = {"content-type": "application/json"}
                self._connection.request("POST", path, json.dumps(body), headers)
                answer = self._connection.getresponse()
                told = json.loads(answer.read())
                if answer.status == 200 and not _must_repeat(told):
                    return told
            except (OSError, http.client.HTTPException, ValueError):
                self._connection.close()
                self._connection = http.client.HTTPConnection(self._place, timeout=20)
            time.sleep(0.05)
        raise SystemExit("the server is gone")

    def reserve(self) -> None:
        items = []
        for _ in range(BATCH):
            self._keys += 1
            usd, tokens = UNIT * self._rng.randint(1, 2000), self._rng.randint(1, 300)
            estimate = {"usd": str(usd), "input_tokens": tokens}
            key = f"{self._name}-{self._keys}"
            items.append({"estimate": estimate, "reserve": True, "ttl_s": TTL_S, "idempotency_key": key})
        replies = self.ask("/api/v1/budgets/check", {"items": items})["items"]
        if self._rng.random() < 0.2:  # the answer was lost: the same again must give the same
            again = self.ask("/api/v1/budgets/check", {"items": items})["items"]
            for one, other in zip(replies, again, strict=True):
                assert one["reservation_id"] in (None, other["reservation_id"]), (one, other)
        self._denied = any(reply["decision"] == "deny" for reply in replies)
        for item, reply in zip(items, replies, strict=True):
            if reply["reservation_id"]:
                self._hold(reply["reservation_id"], item["estimate"], reply["expires_at"])

    def _hold(self, reservation: str, estimate: Any, expires_at: str) -> None:
        usd, tokens = Decimal(estimate["usd"]), estimate["input_tokens"]
        until = datetime.fromisoformat(expires_at.replace("Z", "+00:00")).timestamp()
        self.note(held=reservation, usd=str(usd), tokens=tokens, until=until)
        self._held.append((reservation, usd, tokens, until - TTL_S + SETTLED_WITHIN_S))

    def finish(self) -> None:
        self._held = [each for each in self._held if time.time() < each[3]]
        self._rng.shuffle(self._held)
        ending, self._held = self._held[: BATCH * 2], self._held[BATCH * 2 :]
        settling = []
        for reservation, usd, tokens, _ in ending:
            choice = self._rng.random()
            if choice < 0.6:
                less = UNIT * self._rng.randint(0, int(usd / UNIT))
                used = {"input_tokens": self._rng.randint(0, tokens), "output_tokens": 0}
                settling.append({"reservation_id": reservation, "usd": str(less), "usage": used})
            elif choice < 0.8:
                self.note(released=reservation)
                self.ask("/api/v1/reservations/release", {"reservation_ids": [reservation]})
        if not settling:
            return
        for each in settling:
            self.note(tried=each["reservation_id"], usd=each["usd"], tokens=each["usage"]["input_tokens"])
        replies = self.ask("/api/v1/reservations/settle", {"items": settling})["items"]
        if self._rng.random() < 0.3:  # the answer was lost
            replies = self.ask("/api/v1/reservations/settle", {"items": settling})["items"]
        for each, reply in zip(settling, replies, strict=True):
            if "state" in reply:
                self.note(settled=each["reservation_id"])

    def run(self) -> None:
        while not self.stopping.is_set():
            if len(self._held) < MAX_HELD:
                self.reserve()
            if self._denied or len(self._held) > BATCH * 4:
                self.finish()


def _must_repeat(told: Any) -> bool:
    return any(each.get("status") == 503 for each in told["items"])


def main() -> None:
    """Run until standard input ends."""
    url, log, seed = sys.argv[1:]
    client = Client(url, Path(log), seed)
    threading.Thread(target=lambda: (sys.stdin.read(), client.stopping.set()), daemon=True).start()
    client.run()


if __name__ == "__main__":
    main()
