"""A running API for the tests of the shell: real uvicorn, real readers, real budget book, a built file."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import uvicorn

from billing.budget import Budget, CheckReply, CheckRequest
from billing.budget_book import BudgetBook
from billing.job import Job, StartJob
from billing.reservation_desk import ReservationDesk
from proxy.proxy import Limits as ProxyLimits
from proxy.proxy import Proxy
from tests.shell_house import publish
from tollbook.api import BudgetCheck, create_app
from tollbook.api_reservations import is_budget_path
from tollbook.budget_protocol import budget_protocol
from tollbook.guard import Guard
from tollbook.reader_pool import ReaderLimits, ReaderPool
from tollbook.settings import Server, Settings

LIMITS = ReaderLimits(timeout_s=2.0, max_rows=50, memory_bytes=256 << 20)


class FaultyDesk(ReservationDesk):
    """A desk with a mistake in it."""

    def check_at_once(self, request: CheckRequest) -> CheckReply | None:
        if request.model == "fault":
            raise RuntimeError("sk-ant-secret is in this message")
        return super().check_at_once(request)


class StandingHouse:
    """A house in which nothing moves: fixed offsets, budgets without spend."""

    def __init__(self, data_dir: Path) -> None:
        self.acknowledged = self.committed = 4096
        self.published = 4000
        self.reasons: list[str] = []
        self.readers = ReaderPool(data_dir / "usage.duckdb", LIMITS)
        self.desk = FaultyDesk(self._append)
        self.desk.take_snapshot({"seq": 0, "offset": 4096, "at_s": 0, "budgets": []})
        nothing: Any = None  # no call is carried
        limits = ProxyLimits(max_in_flight_calls=1)
        self.proxy = Proxy(data_dir, journal=nothing, desk=self.desk, quotes=lambda: None, limits=limits)
        self.settings = Settings(server=Server(data_dir=data_dir))
        self.places: dict[str, str] = {}
        self.asked: list[StartJob] = []
        self.explained: list[tuple[str, datetime]] = []

    @property
    def ready(self) -> bool:
        return not self.reasons

    @property
    def budgets(self) -> BudgetBook:
        return self.desk.book

    async def define_budget(self, budget: Budget) -> None:
        self.acknowledged += 100
        self.budgets.put(budget, self.acknowledged)

    async def delete_budget(self, budget_id: str) -> None:
        self.acknowledged += 100
        self.budgets.delete(budget_id, self.acknowledged)

    async def _append(self, body: bytes) -> int:
        self.acknowledged += len(body)
        return self.acknowledged

    async def start_job(self, asked: StartJob) -> dict[str, Any]:
        self.asked.append(asked)
        return Job.asked(asked).told()

    def jobs(self) -> list[dict[str, Any]]:
        return [{**Job.asked(each).told(), "published": False} for each in self.asked]

    async def explain(self, call_id: str, started_at: datetime) -> dict[str, Any] | None:
        self.explained.append((call_id, started_at))
        return {"observations": [{"signal": "log"}], "price": {"lines": ["1000 x 3.00"]}}

    def counters(self) -> dict[str, int | float]:
        return {
            "requests_total{signal=logs,transport=http}": 3,
            "requests_total{signal=traces,transport=grpc}": 4,
            "uptime_seconds": 1.5,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Running:
    """The address of a running server, and its house."""

    port: int
    house: StandingHouse

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {} if body is None else {"content-type": "application/json"}
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        with contextlib.closing(connection):
            connection.request(method, path, content, {**given, **(headers or {})})
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, told, answer.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[Running]:
    """Serve a house on a free port, in a thread with a loop of its own."""
    publish(data_dir / "usage.duckdb")
    house = StandingHouse(data_dir)
    guard = _routes(house)
    protocol = budget_protocol(house, guard)
    server = uvicorn.Server(uvicorn.Config(guard, http=protocol, port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(_serve(server, house)))
    thread.start()
    try:
        while not (server.started and server.servers):
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        house.places = {"http": f"http://127.0.0.1:{port}", "grpc": "127.0.0.1:4317"}
        yield Running(port, house)
    finally:
        server.should_exit = True
        thread.join()


def _routes(house: StandingHouse) -> Guard:
    api, check = create_app(house), BudgetCheck(house)

    async def route(scope: Any, receive: Any, send: Any) -> None:
        fast = is_budget_path(scope["method"], scope["path"])
        await (check if fast else api)(scope, receive, send)

    return Guard(route, allowed_hosts=["agent-host"])


async def _serve(server: uvicorn.Server, house: StandingHouse) -> None:
    await house.readers.start()
    try:
        await server.serve()
    finally:
        await house.readers.close()
