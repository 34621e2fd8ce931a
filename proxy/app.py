"""The proxy's HTTP side: a caller's request in, its answer out.

`serve` is for whoever has a whole request in hand; as an ASGI application the same class reads one first. It
stands in front of every framework, since each request costs what it costs the caller to wait. It checks no
keys of tollbook and no hosts: what stands in front of it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.caller import Caller, Headers, read_caller
from proxy.carrier import Carrier
from proxy.client import Client
from proxy.exchange import CallHead, Exchange
from proxy.failure import FailureKind, failure
from proxy.refusal import Refused
from proxy.wire import UnreadableRequest, WireFormat, operation_of, parse, said

__all__ = ["ProxyHttp", "is_proxy_path"]

log = logging.getLogger("tollbook.proxy")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Gone(Exception):
    """The caller went away before its request was whole."""


MODELS_PATH = "/v1/models"
ListModels = Callable[[Caller], Awaitable[tuple[Headers, bytes]]]


def is_proxy_path(method: str, path: str) -> bool:
    """Whether `ProxyHttp` answers this: a live call, or the list of models."""
    return operation_of(path) is not None if method == "POST" else method == "GET" and path == MODELS_PATH


class _AsgiClient(Client):
    """Who is answered through an ASGI server."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    async def _start(self, status: int, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body."""
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})


class ProxyHttp:
    """What answers the paths of live calls."""

    def __init__(self, carrier: Carrier, list_models: ListModels, *, max_body_bytes: int) -> None:
        self._carrier = carrier
        self._list_models = list_models
        self.max_body_bytes = max_body_bytes

    async def serve(self, head: CallHead, body: bytes, client: Client) -> None:
        """Answer one call. Cancelled once `client.left` is set, it ends quietly."""
        wire_format = head.operation.wire_format
        try:
            await self._carrier.carry(_exchange(head, body), client)
        except Refused as refused:
            await client.fail(refused.failure, wire_format)
        except asyncio.CancelledError:
            if not client.left:
                raise
        except Exception:
            log.exception("a call could not be carried")
            told = failure(FailureKind.INTERNAL, "the call could not be carried")
            await client.fail(told, wire_format)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        client = _AsgiClient(send)
        operation = operation_of(scope["path"])
        headers, query = [(name, value) for name, value in scope["headers"]], scope.get("query_string", b"")
        if operation is None:
            return await self._models(read_caller(headers, query), client)
        try:
            body = await self._body(receive)
        except _Gone:
            return None
        except Refused as refused:
            return await client.fail(refused.failure, operation.wire_format)
        head = CallHead(operation, scope["path"], query, headers)
        return await _while_there(self.serve(head, body, client), client, receive)

    async def _models(self, caller: Caller, client: Client) -> None:
        try:
            told, body = await self._list_models(caller)
        except Refused as refused:
            return await client.fail(refused.failure, WireFormat.OPENAI_CHAT)
        return await client.whole(200, told, body)

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                limit = self.max_body_bytes
                raise Refused(FailureKind.PAYLOAD_TOO_LARGE, f"the request is over {limit} bytes")
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _while_there(serving: Awaitable[None], client: Client, receive: Receive) -> None:
    """Serve a call for as long as its caller is there."""
    work = asyncio.current_task()
    assert work is not None

    def gone(watch: asyncio.Future[Any]) -> None:
        if not watch.cancelled():
            client.left = True
            work.cancel()

    watching = asyncio.ensure_future(receive())
    watching.add_done_callback(gone)
    try:
        await serving
    finally:
        watching.remove_done_callback(gone)
        watching.cancel()
        if client.left:
            work.uncancel()


def _exchange(head: CallHead, body: bytes) -> Exchange:
    """The request, read once. Raises Refused."""
    if not head.is_plain:
        _check_kind(head.headers)
        head.is_plain = True
    try:
        request = parse(body)
        return Exchange(head, said(head.operation, request), body, request)
    except UnreadableRequest as error:
        raise Refused(FailureKind.INVALID_REQUEST, str(error)) from None


def _check_kind(headers: Headers) -> None:
    told = dict(reversed(headers))
    kind = told.get(b"content-type", b"")
    if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(FailureKind.INVALID_REQUEST, "the body must be JSON and its content-type say so")
    if told.get(b"content-encoding", b"identity") not in (b"", b"identity"):
        raise Refused(FailureKind.INVALID_REQUEST, "the body must not be compressed")
