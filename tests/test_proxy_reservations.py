"""What a live call holds of budgets, and when it lets go: a real proxy, journal and provider, no ledger.

Without a ledger nothing is ever settled, so whatever is not held any more was let go by the proxy itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from billing.budget import read_budget
from billing.budget_period import epoch_s
from billing.reservation_desk import ReservationDesk
from catalog.quote import Quotes
from ingest.journal import Journal, JournalError, Kind
from ingest.segment import read_frames
from proxy.caller import Headers
from proxy.client import Client
from proxy.connection import Timeouts
from proxy.exchange import CallHead
from proxy.proxy import Limits, Proxy
from proxy.upstream import Upstream
from proxy.wire import operation_of
from tests.model_server import ModelServer, model_server
from tests.test_proxy_carry import write_doors

PATH = "/v1/chat/completions"
ROUTES = """
[[route]]
name = "chain"
models = ["chain"]
[[route.target]]
provider = "openai"
model = "gpt-5"
[[route.target]]
provider = "openai"
model = "gpt-4.1"

[[route]]
name = "degrading"
models = ["degrading"]
degrade = true
[[route.target]]
provider = "openai"
model = "gpt-5"
[[route.target]]
provider = "openai"
model = "gpt-5-nano"
"""


@pytest.fixture(scope="module")
def quotes() -> Quotes:
    return Quotes.load()


class Reader(Client):
    """A caller who reads what comes; `broken`: what it is answered with cannot be written."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self._broken = broken

    async def _start(self, status: int, headers: Headers) -> None:
        if self._broken:
            self._broken, self.started = False, False
            raise RuntimeError("a fault of ours")
        self.status, self.headers = status, dict(headers)

    async def write(self, chunk: bytes) -> None:
        self.body += chunk

    async def end(self, chunk: bytes = b"") -> None:
        self.body += chunk


@dataclass
class Desk:
    """The parts of one house that a call passes. `failing`: the disk of reservations."""

    proxy: Proxy
    desk: ReservationDesk
    models: ModelServer
    journal: Journal
    journal_dir: Path
    failing: bool = False
    writing: asyncio.Event = field(default_factory=asyncio.Event)
    may_write: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, text: str = "say hello", *, client: Reader | None = None, **told: Any) -> Reader:
        """One call by a caller with a key of OpenAI's."""
        client = client or Reader()
        asked = {"model": "gpt-5", "max_tokens": 100, **told}
        body = json.dumps({**asked, "messages": [{"role": "user", "content": text}]}).encode()
        headers = [(b"authorization", b"Bearer sk-proj-mine"), (b"content-type", b"application/json")]
        operation = operation_of(PATH)
        assert operation is not None
        await self.proxy.http.serve(CallHead(operation, PATH, b"", headers), body, client)
        return client

    def held(self, budget: str = "purse") -> str:
        figures = self.desk.book.figures(budget, datetime.now(UTC))
        assert figures is not None
        return figures.reserved

    async def until_free(self, budget: str = "purse") -> None:
        async with asyncio.timeout(10):
            while self.held(budget) != "0":
                await asyncio.sleep(0.01)

    async def outcomes(self) -> list[str]:
        """How the journal tells that each attempt ended."""
        await self.proxy.recorded()
        told = []
        stop = self.journal.durable
        for frame in read_frames(self.journal_dir, start=0, stop=stop, max_bytes=1 << 24):
            if frame.kind == Kind.TRACES_PROTO:
                export = ExportTraceServiceRequest.FromString(frame.body)
                spans = [s for r in export.resource_spans for each in r.scope_spans for s in each.spans]
                attributes = [attribute for span in spans for attribute in span.attributes]
                told += [each.value.string_value for each in attributes if each.key == "tollbook.outcome"]
        return told


@asynccontextmanager
async def house(
    tmp_path: Path, quotes: Quotes, *, door: str | None = None, **limits: str
) -> AsyncIterator[Desk]:
    """Budgets over everything, by id and limit in USD; `door`: where the providers are instead."""
    tmp_path.mkdir(exist_ok=True)
    journal = Journal.open(tmp_path / "journal")
    with model_server() as models:
        write_doors(tmp_path, door or models.url)
        with (tmp_path / "routes.toml").open("a") as file:
            file.write(ROUTES)

        async def append(body: bytes) -> int:
            place.writing.set()
            await place.may_write.wait()
            if place.failing:
                raise JournalError("no space left on device")
            return await journal.append(Kind.CONTROL, body, received_at_ns=0)

        desk = ReservationDesk(append)
        desk.quotes = quotes
        proxy = Proxy(tmp_path, journal=journal, desk=desk, quotes=lambda: quotes, limits=Limits())
        place = Desk(proxy, desk, models, journal, tmp_path / "journal")
        place.may_write.set()
        told = [{"id": name, "limit": limit, "period": "total"} for name, limit in limits.items()]
        budgets = [read_budget(json.dumps(each).encode()).model_dump(mode="json") for each in told]
        entries = [{"budget": each, "offset": 1, "spend": []} for each in budgets]
        at_s = epoch_s(datetime.now(UTC))
        desk.take_snapshot({"seq": 0, "offset": 1, "at_s": at_s, "budgets": entries, "holds": []})
        try:
            yield place
        finally:
            await proxy.close()
            await journal.close()


@contextmanager
def unanswering() -> Iterator[str]:
    """A port at which connections are never made: its queue is full."""
    with socket.socket() as server, socket.socket() as one, socket.socket() as two:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_what_a_call_may_need_is_held_until_its_record_settles_it(
    tmp_path: Path, quotes: Quotes
) -> None:
    async with house(tmp_path, quotes, purse="1") as place:
        answer = await place.call()
        assert answer.status == 200, answer.body
        assert place.held() != "0"
        assert await place.outcomes() == ["answered"]


async def test_a_caller_who_goes_while_it_is_being_held_leaves_nothing_behind(
    tmp_path: Path, quotes: Quotes
) -> None:
    async with house(tmp_path, quotes, purse="1") as place:
        place.may_write.clear()
        call = asyncio.create_task(place.call())
        async with asyncio.timeout(10):
            await place.writing.wait()
        assert place.held() != "0"
        call.cancel()
        await asyncio.wait([call])
        place.may_write.set()
        await place.until_free()
        assert (place.models.arrived, await place.outcomes()) == ([], [])


async def test_a_caller_who_goes_before_anything_is_sent_has_used_nothing(
    tmp_path: Path, quotes: Quotes
) -> None:
    with unanswering() as url:
        async with house(tmp_path, quotes, door=url, purse="1") as place:
            call = asyncio.create_task(place.call())
            async with asyncio.timeout(10):
                while place.proxy.counters()["proxy_in_flight"] == 0:
                    await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])
            await place.until_free()
            assert await place.outcomes() == ["unsent"]
            assert place.proxy.counters()["proxy_in_flight"] == 0


async def test_who_waits_for_a_connection_only_so_long_is_told_of_the_time(tmp_path: Path) -> None:
    """`asyncio.timeout` takes the plain CancelledError for its own and no other."""
    upstream = Upstream(Timeouts())
    with unanswering() as url, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await upstream.send("GET", url, [(b"accept", b"*/*")], b"", local=True)
    await upstream.close()


async def test_what_a_provider_refuses_is_free_at_once_for_the_next_target(
    tmp_path: Path, quotes: Quotes
) -> None:
    """The budget has room for one attempt at a time."""
    async with house(tmp_path, quotes, purse="0.0015") as place:
        answer = await place.call("status 429 once", model="chain")
        assert (answer.status, answer.headers[b"tollbook-model"]) == (200, b"gpt-4.1")
        assert await place.outcomes() == ["refused", "answered"]
        held = place.held()
        assert (await place.call("status 500")).status in (429, 500)
        assert place.held() == held


async def test_what_cannot_be_reached_is_free_at_once(tmp_path: Path, quotes: Quotes) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        async with house(tmp_path, quotes, door=url, purse="1") as place:
            assert (await place.call()).status == 502
            assert (place.held(), await place.outcomes()) == ("0", ["unreachable"])


async def test_of_two_budgets_neither_holds_what_the_second_denies(tmp_path: Path, quotes: Quotes) -> None:
    async with house(tmp_path, quotes, purse="1", pocket="0.000001") as place:
        answer = await place.call()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "budget_exceeded")
        assert b"pocket" in answer.body and b"purse" not in answer.body
        assert (place.held(), place.held("pocket"), place.models.arrived) == ("0", "0", [])


async def test_degraded_only_what_fits_is_held(tmp_path: Path, quotes: Quotes) -> None:
    async with house(tmp_path, quotes, purse="0.0005") as place:
        answer = await place.call(model="degrading")
        assert (answer.status, answer.headers[b"tollbook-model"]) == (200, b"gpt-5-nano")
        alone = place.held()
    async with house(tmp_path / "again", quotes, purse="1") as place:
        await place.call(model="gpt-5-nano")
        assert place.held() == alone


async def test_what_cannot_be_written_down_is_not_sent(tmp_path: Path, quotes: Quotes) -> None:
    async with house(tmp_path, quotes, purse="1") as place:
        place.failing = True
        answer = await place.call()
        assert (answer.status, answer.headers[b"retry-after"]) == (503, b"2")
        assert (place.held(), place.models.arrived) == ("0", [])


async def test_a_fault_of_ours_leaves_the_call_in_the_book(tmp_path: Path, quotes: Quotes) -> None:
    async with house(tmp_path, quotes, purse="1") as place:
        answer = await place.call(client=Reader(broken=True), stream=True)
        assert answer.status == 500
        assert await place.outcomes() == ["broken"]
        assert place.proxy.counters()["proxy_in_flight"] == 0


async def test_a_disk_that_fails_later_leaves_the_caller_the_providers_answer(
    tmp_path: Path, quotes: Quotes, caplog: pytest.LogCaptureFixture
) -> None:
    """What was held cannot be let go: it expires."""
    async with house(tmp_path, quotes, purse="1") as place:
        place.may_write.clear()
        call = asyncio.create_task(place.call("status 429"))
        async with asyncio.timeout(10):
            await place.writing.wait()
        place.writing.clear()
        place.may_write.set()
        async with asyncio.timeout(10):
            while place.journal.durable == 0:
                await asyncio.sleep(0)
        place.failing = True
        answer = await call
        assert (answer.status, answer.body) == (429, place.models.sent[-1])
        assert place.held() != "0"
        assert "stays until it expires" in caplog.text
