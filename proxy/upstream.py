"""The way to a provider and back: one connection pool, bytes as they are, and a limit on every wait.

Nothing is decompressed, redirected, cached or added here. A call to an endpoint that was not declared local
never reaches an address of this network, whatever its name resolves to at that moment.

Errors: `Unreachable` (nothing was sent: safe to try elsewhere), `TooSlow`, `Broken`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from proxy.caller import Headers
from proxy.url_safety import is_metadata, is_public

__all__ = ["Broken", "Timeouts", "TooSlow", "Unreachable", "Upstream", "UpstreamError"]

_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class UpstreamError(Exception):
    """The provider gave no whole answer. The message is for the caller and names no internal address."""


class Unreachable(UpstreamError):
    """No connection: the provider has seen nothing of the call."""


class TooSlow(UpstreamError):
    """The provider took longer than it may."""


class Broken(UpstreamError):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for: a connection, the answer's first byte, silence within it, all of it."""

    connect_s: float = 10.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 3600.0


class _SafeResolver(AbstractResolver):
    """Resolves names to addresses that may be called; `local`: also to those of this network."""

    def __init__(self, *, local: bool) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._local = local

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        addresses = [ip_address(each["host"].partition("%")[0]) for each in found]
        if any(is_metadata(each) or not (self._local or is_public(each)) for each in addresses):
            raise OSError(None, "the provider's name leads into this network")
        return found

    async def close(self) -> None:
        await self._inner.close()


class Upstream:
    """Connections to providers. Belongs to the event loop that first uses it."""

    def __init__(self, timeouts: Timeouts, *, max_connections: int) -> None:
        self._timeouts = timeouts
        self._limit = max_connections
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def send(self, method: str, url: str, headers: Headers, body: bytes, *, local: bool) -> Answer:
        """Send a request; its answer, of which the head has come. Raises UpstreamError."""
        timeouts = self._timeouts
        deadline = asyncio.timeout(timeouts.first_byte_s)
        try:
            async with deadline:
                response = await self._session(local).request(
                    method,
                    URL(url, encoded=True),
                    data=body or None,
                    headers=CIMultiDict(
                        (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers
                    ),
                    allow_redirects=False,
                    skip_auto_headers=_OURS,
                )
        except aiohttp.ConnectionTimeoutError:
            raise Unreachable("the provider could not be reached in time") from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(_sentence(error)) from None
        except TimeoutError:
            raise TooSlow(f"the provider did not answer within {timeouts.first_byte_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise Broken("the connection to the provider ended before it answered") from None
        return Answer(response, timeouts)

    def _session(self, local: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(local)
        if session is None:
            connector = aiohttp.TCPConnector(
                limit=self._limit, resolver=_SafeResolver(local=local), ttl_dns_cache=30
            )
            session = self._sessions[local] = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect_s),
                trust_env=False,
                read_bufsize=1 << 17,
            )
        return session

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()


def _sentence(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientSSLError):
        return "the provider's certificate was not accepted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the provider's name could not be resolved"
    return "the provider could not be reached"


class Answer:
    """A provider's answer as it comes. `close` it in any case: what was not read to its end is cut off.

    One timer watches over silence and length: bytes come by the thousand, and each costs only a look at the
    clock.
    """

    def __init__(self, response: aiohttp.ClientResponse, timeouts: Timeouts) -> None:
        self._response = response
        self._content = response.content
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._ends_s = self._loop.time() + timeouts.total_s
        self._heard_s = self._loop.time()
        self._too_slow = False
        self._timer = self._loop.call_at(self._due_s(), self._look)
        self.status = response.status
        self.raw_headers: Sequence[tuple[bytes, bytes]] = response.raw_headers
        self.headers: dict[str, str] = {name.lower(): value for name, value in response.headers.items()}

    @property
    def streams(self) -> bool:
        """Whether it is a stream of events, to be relayed as it comes."""
        kind = self.headers.get("content-type", "")
        return kind.startswith(("text/event-stream", "application/x-ndjson"))

    async def next(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamError."""
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, OSError, ValueError):
            if self._too_slow:
                raise TooSlow("the provider fell silent in the middle of its answer") from None
            raise Broken("the connection to the provider ended in the middle of its answer") from None
        self._heard_s = self._loop.time()
        return chunk

    def _due_s(self) -> float:
        return min(self._heard_s + self._timeouts.idle_s, self._ends_s)

    def _look(self) -> None:
        """Cut an answer off that has been silent, or has gone on, for too long."""
        if self._loop.time() >= self._due_s():
            self._too_slow = True
            self._response.close()
        else:
            self._timer = self._loop.call_at(self._due_s(), self._look)

    async def whole(self, limit_bytes: int) -> bytes:
        """All of it. Raises UpstreamError."""
        parts: list[bytes] = []
        size = 0
        while part := await self.next():
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                raise Broken("the provider's answer is larger than answers may be")
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back if all was read, else cut it."""
        self._timer.cancel()
        if self._content.at_eof():
            self._response.release()
        else:
            self._response.close()
