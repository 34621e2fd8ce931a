"""The proxy put together: what the front starts, asks and stops."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing.reservation_desk import ReservationDesk
from catalog.quote import Quotes
from ingest.journal import Journal, JournalError
from proxy.allowance import Allowance
from proxy.app import ProxyHttp
from proxy.caller import Caller, Headers
from proxy.carrier import Carrier
from proxy.catalogue import Catalogue
from proxy.choice import Chooser
from proxy.connection import Timeouts
from proxy.doors import DoorSettings
from proxy.explain import ExplainRequest, explain
from proxy.failure import FailureKind
from proxy.inflight import InFlight
from proxy.models import ModelLists
from proxy.plan import Planner
from proxy.recorder import Recorder
from proxy.refusal import Refused
from proxy.route_files import RouteFiles
from proxy.routes import Route
from proxy.upstream import Upstream
from proxy.vault import Vault

__all__ = ["Limits", "Proxy"]

log = logging.getLogger("tollbook.proxy")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much and how long; see the settings of [proxy]."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    max_request_bytes: int = 64 << 20
    max_answer_bytes: int = 64 << 20
    max_in_flight_calls: int = 1024


class Proxy:
    """Live calls over the doors of one house. `quotes` is the catalogue, None while the house starts."""

    def __init__(
        self,
        data_dir: Path,
        *,
        journal: Journal,
        desk: ReservationDesk,
        quotes: Callable[[], Quotes | None],
        limits: Limits,
    ) -> None:
        self._quotes = quotes
        self._known: Planner | None = None
        self.vault = Vault(data_dir / "keys")
        self.routes = RouteFiles(data_dir)
        inflight = InFlight(data_dir / "proxy" / "in-flight", slots=limits.max_in_flight_calls)
        self._recorder = Recorder(journal, inflight)
        upstream = Upstream(limits.timeouts)
        self._allowance = Allowance(desk)
        self._lists = ModelLists(upstream, self.vault)
        self.carrier = Carrier(
            self.planner,
            allowance=self._allowance,
            upstream=upstream,
            recorder=self._recorder,
            max_answer_bytes=limits.max_answer_bytes,
        )
        self.http = ProxyHttp(self.carrier, self._list_models, max_body_bytes=limits.max_request_bytes)

    def planner(self) -> Planner:
        """The planner by the catalogue and the routes of now. Raises Refused while the house starts."""
        quotes = self._quotes()
        if quotes is None:
            sentence = "tollbook is starting; ask again in a moment"
            raise Refused(FailureKind.OVERLOADED, sentence, retry_after_s=1)
        if self._known is None or self._known.chooser.catalogue.quotes is not quotes:
            chooser = Chooser(Catalogue(quotes), self.vault, DoorSettings(self.routes.doors))
            self._known = Planner(chooser, self.routes.table, self.carrier.health, self._allowance)
        return self._known

    async def _list_models(self, caller: Caller) -> tuple[Headers, bytes]:
        planner = self.planner()
        return await self._lists.answer(planner.chooser, planner.table, caller)

    def explain(self, asked: ExplainRequest) -> dict[str, Any]:
        """What would happen to a call. Raises Refused."""
        return explain(self.planner(), asked)

    def put_route(self, route: Route) -> None:
        """Define a route, durably. Raises RoutesFileError."""
        self.routes.put(route)
        self._known = None

    def delete_route(self, name: str) -> bool:
        """Forget a route that the API defined; whether there was one."""
        gone = self.routes.delete(name)
        self._known = None
        return gone

    async def start(self) -> None:
        """Record what a process before this one had on its way when it was killed."""
        try:
            await self._recorder.recover()
        except JournalError as error:
            log.error("interrupted calls wait for the next start to be recorded: %s", error)

    def stop_soon(self) -> None:
        """The house is about to stop: calls that end before their answer were stopped, not left."""
        self.carrier.stopping = True

    async def close(self) -> None:
        """Close the connections, finish the records."""
        await self.carrier.close()
        await self._recorder.close()

    async def recorded(self) -> None:
        """Return when every call whose answer has ended by now is in the journal, or cannot be."""
        await self._recorder.settled()

    def counters(self) -> dict[str, int | float]:
        """For /metrics."""
        counts = self.carrier.counts
        return {
            **{
                f"proxy_attempts_total{{outcome={outcome}}}": number
                for outcome, number in self._recorder.outcomes.items()
            },
            **{
                f"proxy_fallbacks_total{{to_paid={str(paid).lower()}}}": number
                for paid, number in counts.fallbacks.items()
            },
            "proxy_refused_total": counts.refused,
            "proxy_unrecorded_total": self._recorder.unrecorded,
            "proxy_in_flight": self._recorder.on_their_way,
        }
