"""`tollbook serve`: open the journal, listen, start ledger and readers, say where, run until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from catalog.errors import CatalogError
from catalog.quote import Quotes
from ingest.grpc_receiver import start_grpc
from ingest.http_receiver import OtlpHttp, is_otlp_path
from ingest.journal import Journal, JournalError
from proxy.app import is_proxy_path
from proxy.route_files import RoutesFileError
from tollbook.api import create_app
from tollbook.api_reservations import BudgetCheck, is_budget_path
from tollbook.budget_protocol import budget_protocol
from tollbook.call_protocol import call_protocol
from tollbook.errors import TollbookError
from tollbook.export_protocol import export_protocol
from tollbook.front import Front
from tollbook.guard import Guard
from tollbook.settings import Settings

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger("tollbook.front")

GRACE_S = 5
KEEP_ALIVE_S = 75
SWITCH_INTERVAL_S = 0.0005
"""How long the event loop may keep the journal's writer thread waiting for the interpreter."""

COLLECTIONS = (10_000, 2, 1_000)
"""Open reservations are no garbage: walking all of them is seldom worth the milliseconds it keeps replies.
What is being answered is walked too: with 2,000 in place of 10,000 a reservation costs an eighth more CPU.
"""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Whatever it or its children write is for this user's eyes only."""
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*COLLECTIONS)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    uvloop.run(_serve(settings))


class StartError(TollbookError):
    """The house cannot be opened: its data is in use, or a port is."""


async def _serve(settings: Settings) -> None:
    server = settings.server
    _check_catalog(settings)
    journal = _open_journal(server.data_dir)
    try:
        listening = _listen(server.host, server.http_port)
        front = _open_front(settings, journal)
        async with front.running():
            grpc_server, grpc_port = await _start_grpc(front, server.host, server.grpc_port)
            serving = asyncio.create_task(_http_server(front).serve(sockets=[listening]))
            front.places = _places(listening, server.host, grpc_port)
            _say_where(front.places)
            await serving
            await grpc_server.stop(GRACE_S)
    finally:
        await journal.close()


def _check_catalog(settings: Settings) -> None:
    """Refuse to start with prices or accounts of the operator's that are wrong: each fault with its line."""
    told = settings.catalog
    if told.overlay is None and told.accounts is None:
        return
    try:
        Quotes.load(settings.server.data_dir / "catalog", overlay=told.overlay, accounts_file=told.accounts)
    except CatalogError as error:
        raise StartError(str(error)) from error


def _open_journal(data_dir: Path) -> Journal:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Journal.open(data_dir / "journal")
    except (JournalError, OSError) as error:
        raise StartError(f"{error}; choose another with --data-dir, or end what uses it") from error


def _open_front(settings: Settings, journal: Journal) -> Front:
    try:
        return Front(settings, journal)
    except RoutesFileError as error:
        raise StartError(str(error)) from error


async def _start_grpc(front: Front, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    try:
        return await start_grpc(front.intake, host=host, port=port)
    except OSError as error:
        raise StartError(f"port {port} for gRPC cannot be had; choose another with --grpc-port") from error


class Routes:
    """The ASGI application: telemetry and budget checks by the shortest way, the rest through FastAPI."""

    def __init__(self, front: Front) -> None:
        self._otlp = OtlpHttp(front.intake)
        self._check = BudgetCheck(front)
        self._proxy = front.proxy.http
        self._api = create_app(front)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            if is_otlp_path(scope["path"]):
                return await self._otlp(scope, receive, send)
            if is_budget_path(scope["method"], scope["path"]):
                return await self._check(scope, receive, send)
            if is_proxy_path(scope["method"], scope["path"]):
                return await self._proxy(scope, receive, send)
        return await self._api(scope, receive, send)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise StartError(f"port {port} for HTTP cannot be had; choose another with --http-port") from error
    listening.listen(2048)
    listening.setblocking(False)
    return listening


class _Server(uvicorn.Server):
    """Uvicorn, stopped by the same signals, without raising them again; `on_stop` is told first."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully; at once when asked again."""
        self._on_stop()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """SIGTERM and SIGINT ask for a graceful stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _protocol(front: Front, guard: Guard) -> type[HttpToolsProtocol]:
    """Uvicorn with the short ways in front, each where the next one is not meant."""
    budgets = budget_protocol(front, guard)
    return call_protocol(export_protocol(budgets, OtlpHttp(front.intake)), front.proxy.http)


def _http_server(front: Front) -> uvicorn.Server:
    guarded = Guard(Routes(front), allowed_hosts=front.settings.server.allowed_hosts)
    config = uvicorn.Config(
        guarded,
        http=_protocol(front, guarded),
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(GRACE_S, round(front.settings.proxy.drain_s)),
    )
    return _Server(config, on_stop=front.proxy.stop_soon)


def _places(listening: socket.socket, host: str, grpc_port: int) -> dict[str, str]:
    shown = f"[{host}]" if ":" in host else host
    return {"http": f"http://{shown}:{listening.getsockname()[1]}", "grpc": f"{shown}:{grpc_port}"}


def _say_where(places: dict[str, str]) -> None:
    """The one line on stdout."""
    sys.stdout.write(orjson.dumps(places).decode() + "\n")
    sys.stdout.flush()
