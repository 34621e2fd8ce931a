"""The guard before every HTTP route: what a browser on this machine must not be talked into.

tollbook listens on loopback without keys, and web pages can reach loopback. So the Host header must be this
machine's (a page that rebinds its name to 127.0.0.1 still sends its own name), an Origin must be our own (a
form or a script of a foreign page is refused), and JSON must be called JSON (forms cannot do that). Plain
ASGI, since it stands before the fast paths too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from tollbook.problems import Problem
from tollbook.settings import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_PATHS = "/api/v1/"
WRITING = {"POST", "PUT", "PATCH"}
REMEMBERED_HOSTS = 256
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Refuses foreign hosts, foreign origins and JSON that is not called so; adds the security headers."""

    def __init__(self, app: App, *, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = {host.lower() for host in allowed_hosts}
        self._known: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        try:
            self.check(scope)
        except Problem as problem:
            await send_problem(_guarded(send), problem)
            return
        await self._app(scope, receive, _guarded(send))

    def check(self, scope: Scope) -> None:
        """Raise the Problem that a request is refused with, by its headers, method and path."""
        hosts: list[bytes] = []
        origin = kind = b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value
            elif name == b"content-type":
                kind = value
        self._check_host(hosts)
        if origin and origin != scope.get("scheme", "http").encode() + b"://" + hosts[0]:
            raise Problem("foreign_origin", "the request comes from a web page of another origin")
        if scope["method"] in WRITING and scope["path"].startswith(JSON_PATHS):
            _check_json(kind)

    def _check_host(self, hosts: list[bytes]) -> None:
        if len(hosts) == 1 and hosts[0] in self._known:
            return
        if len(hosts) != 1 or not self._is_ours(hosts[0].decode("latin-1")):
            raise Problem("foreign_host", "the Host header names another machine, or is missing")
        if len(self._known) < REMEMBERED_HOSTS:
            self._known.add(hosts[0])

    def _is_ours(self, host: str) -> bool:
        name = without_port(host).lower()
        return is_loopback(name) or name in self._allowed


def without_port(host: str) -> str:
    """The name or address of a Host header; brackets of IPv6 stay."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _check_json(kind: bytes) -> None:
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        raise Problem("unsupported_media_type", "the body must be JSON and be called so")


def _guarded(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
        await send(message)

    return with_headers


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer with a problem document."""
    headers = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    await send_body(send, problem.body(), status=problem.status, headers=headers)


async def send_body(send: Send, body: bytes, *, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Answer with a whole body."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
