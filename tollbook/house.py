"""What the API needs of the running house, and nothing more: the seam between the routes and the front."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from billing.budget import Budget
from billing.budget_book import BudgetBook
from billing.job import StartJob
from billing.reservation_desk import ReservationDesk
from catalog.quote import Quotes
from proxy.proxy import Proxy
from tollbook.reader_pool import ReaderPool
from tollbook.settings import Settings


class House(Protocol):
    """The running front.

    `acknowledged`, `committed` and `published` are journal offsets; `reasons` says why it is not ready.
    """

    @property
    def acknowledged(self) -> int: ...
    @property
    def committed(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def reasons(self) -> list[str]: ...
    @property
    def readers(self) -> ReaderPool: ...
    @property
    def budgets(self) -> BudgetBook: ...
    @property
    def quotes(self) -> Quotes | None:
        """The catalogue in memory; None while the house is starting."""
        ...

    @property
    def desk(self) -> ReservationDesk:
        """Where checks are answered and reservations are kept; it raises BudgetError or Problem."""
        ...

    @property
    def proxy(self) -> Proxy: ...
    @property
    def settings(self) -> Settings: ...

    @property
    def places(self) -> dict[str, str]:
        """Where it listens: `{"http": "http://127.0.0.1:4318", "grpc": "127.0.0.1:4317"}`."""
        ...

    async def define_budget(self, budget: Budget) -> None:
        """Define a budget, durably."""

    async def delete_budget(self, budget_id: str) -> None:
        """Delete a budget, durably."""

    async def start_job(self, asked: StartJob) -> dict[str, Any]:
        """Take up a job over history; it as it stands. Raises Problem."""
        ...

    def jobs(self) -> list[dict[str, Any]]:
        """The newest jobs over history, the newest last."""
        ...

    async def explain(self, call_id: str, started_at: datetime) -> dict[str, Any] | None:
        """The evidence and the arithmetic of a call; raises Problem while the ledger is away."""
        ...

    def counters(self) -> dict[str, int | float]:
        """Everything that is counted: `name` or `name{label=value,...}` -> number."""
        ...
