"""The way to providers: connections that are kept for the next call, and nobody reached who must not be.

A call to an endpoint that was not declared local never reaches an address of this network, whatever its name
resolves to at that moment: names are resolved here, and connections made to the very addresses that passed.
Nothing is redirected, cached or taken from the environment. Requests are written as they are handed in;
whatever would be no header is refused.

Errors: `Unreachable` (nothing was sent: safe to try elsewhere), and those of `connection`. Who is cancelled
before anything was sent is told so by `NOTHING_SENT` among the arguments of the CancelledError: a class of
its own would pass by `asyncio.timeout`, which looks for the plain one.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from aiohappyeyeballs import AddrInfoType, start_connection

from proxy.connection import Answer, Connection, Timeouts, Unreachable
from proxy.url_safety import is_metadata, is_public

__all__ = ["NOTHING_SENT", "Upstream"]

NOTHING_SENT: Final = "nothing was sent"
"""Cancelled while the connection was being made: the provider has seen nothing of the call."""
KEPT_S: Final = 15.0
"""How long a connection without a call is kept, about: providers close theirs after some while."""
RESOLVED_S: Final = 30.0
NEXT_ADDRESS_S: Final = 0.25
RETRY_S: Final = 0.1
MAX_HEADS: Final = 256
"""Heads remembered, with the keys in them: at their longest, 4 MiB."""
_HEAD: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*\r\n)+")


class Origin(NamedTuple):
    """Who is spoken to; `local`: it may lie in this network."""

    secure: bool
    host: str
    port: int
    local: bool


class Upstream:
    """Connections to providers. Belongs to the event loop that first uses it."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._idle: dict[Origin, deque[Connection]] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._resolved: dict[Origin, tuple[float, Sequence[AddrInfoType]]] = {}
        self._tls: ssl.SSLContext | None = None

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, local: bool
    ) -> Answer:
        """Send a request; its answer, of which the head has come. Raises UpstreamError."""
        origin, head = _head(method, url, tuple(headers), local)
        connection = self._kept(origin) or await self._reached(origin)
        return await connection.ask(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    def _kept(self, origin: Origin) -> Connection | None:
        """A connection that the last call left and that is still good."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweeping is None:
            self._sweeping = connection.loop.call_later(KEPT_S, self._sweep)

    def _sweep(self) -> None:
        """Close what has not been needed for a while; the oldest come first."""
        loop = asyncio.get_running_loop()
        for origin, idle in list(self._idle.items()):
            while idle and (not idle[0].is_open or idle[0].idle_since_s <= loop.time() - KEPT_S):
                idle.popleft().transport.abort()
            if not idle:
                del self._idle[origin]
        self._sweeping = loop.call_later(KEPT_S / 2, self._sweep) if self._idle else None

    async def _reached(self, origin: Origin) -> Connection:
        """A new connection, tried for twice. Raises Unreachable, and CancelledError with NOTHING_SENT."""
        try:
            try:
                return await self._connected(origin)
            except Unreachable:
                await asyncio.sleep(RETRY_S * (0.5 + random.random()))  # noqa: S311  # to spread, not to guard
                return await self._connected(origin)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(NOTHING_SENT) from None

    async def _connected(self, origin: Origin) -> Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                return await self._connect(origin)
        except TimeoutError:
            raise Unreachable("the provider could not be reached in time") from None
        except ssl.SSLError:
            raise Unreachable("the provider's certificate was not accepted") from None
        except socket.gaierror:
            raise Unreachable("the provider's name could not be resolved") from None
        except OSError:
            raise Unreachable("the provider could not be reached") from None

    async def _connect(self, origin: Origin) -> Connection:
        addresses = await self._addresses(origin)
        reached = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S)
        keep = partial(self._keep, origin)
        _, made = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._timeouts, keep),
            sock=reached,
            ssl=self._context() if origin.secure else None,
            server_hostname=origin.host if origin.secure else None,
        )
        return made

    async def _addresses(self, origin: Origin) -> Sequence[AddrInfoType]:
        """Where a name leads now, every address checked. Raises Unreachable and gaierror."""
        loop = asyncio.get_running_loop()
        until, known = self._resolved.get(origin, (0.0, []))
        if loop.time() < until:
            return known
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
        if any(is_metadata(each) or not (origin.local or is_public(each)) for each in addresses):
            raise Unreachable("the provider's name leads into this network")
        if not origin.secure and any(map(is_public, addresses)):
            raise Unreachable(
                "the provider's name leads out of this network: keys travel there by https:// only"
            )
        self._resolved[origin] = (loop.time() + RESOLVED_S, found)
        return found

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    async def close(self) -> None:
        """Close the connections that no call is on."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # lets them go


@lru_cache(maxsize=MAX_HEADS)
def _head(
    method: str, url: str, headers: tuple[tuple[bytes, bytes], ...], local: bool
) -> tuple[Origin, bytes]:
    """Who a request is for, and its head up to the length of its body. Raises Unreachable."""
    origin, host, target = _place(url, local)
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode()]
    lines += [b"%s: %s\r\n" % header for header in headers]
    head = b"".join(lines)
    if _HEAD.fullmatch(head) is None:
        raise Unreachable("a header or the URL of the call cannot be sent as it is")
    return origin, head


def _place(url: str, local: bool) -> tuple[Origin, str, str]:
    """Who a URL leads to, how that is written in a request, and what is asked for there."""
    told = urlsplit(url)
    if told.scheme not in ("http", "https") or not told.hostname:
        raise Unreachable("the URL of the call is none")
    secure = told.scheme == "https"
    port = told.port or (443 if secure else 80)
    target = (told.path or "/") + (f"?{told.query}" if told.query else "")
    host = told.netloc.rpartition("@")[2]
    return Origin(secure, told.hostname, port, local), host, target
