"""Real receivers on free ports, in the test's own event loop, over a real journal."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ingest.grpc_receiver import start_grpc
from ingest.http_receiver import OtlpHttp
from ingest.intake import Intake
from ingest.journal import Frame, Journal, read_frames
from ingest.limits import Limits
from tollbook.budget_protocol import BudgetProtocol, budget_protocol
from tollbook.export_protocol import export_protocol
from tollbook.guard import Guard


@dataclass(frozen=True, slots=True)
class Receivers:
    """What a test talks to."""

    http: str
    http_port: int
    grpc: str
    intake: Intake
    directory: Path

    def frames(self) -> list[Frame]:
        """Everything that was journaled."""
        return read_frames(self.directory, start=0, stop=self.intake.journal.durable, max_bytes=1 << 30)


def _no_budgets(guard: Guard) -> type[BudgetProtocol]:
    house: Any = None  # no check is asked
    return budget_protocol(house, guard)


@asynccontextmanager
async def receivers(
    directory: Path, limits: Limits | None = None, *, short: bool = True
) -> AsyncIterator[Receivers]:
    """HTTP and gRPC receivers over a journal in `directory`; `short`: with the short way in front of HTTP."""
    journal = Journal.open(directory / "journal", segment_bytes=1 << 20)
    intake = Intake(journal, limits or Limits())
    listener = socket.create_server(("127.0.0.1", 0))
    otlp = OtlpHttp(intake)
    guarded = Guard(otlp)
    http = export_protocol(_no_budgets(guarded), otlp) if short else "auto"
    config = uvicorn.Config(guarded, http=http, lifespan="off", log_level="warning", access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    grpc_server, grpc_port = await start_grpc(intake, host="127.0.0.1", port=0)
    try:
        port = listener.getsockname()[1]
        yield Receivers(
            http=f"http://127.0.0.1:{port}",
            http_port=port,
            grpc=f"127.0.0.1:{grpc_port}",
            intake=intake,
            directory=directory / "journal",
        )
    finally:
        await server.shutdown(sockets=[listener])
        await grpc_server.stop(grace=None)
        await journal.close()
