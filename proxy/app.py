"""The proxy's HTTP side, raw ASGI: a caller's request in, its answer out.

It stands in front of every framework, since each request costs what it costs the caller to wait. It checks
no keys of tollbook and no hosts: what stands in front of it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.caller import Caller, Headers, read_caller
from proxy.carrier import Carrier
from proxy.exchange import Exchange
from proxy.failure import FailureKind, failure
from proxy.refusal import Refused
from proxy.relay import Client
from proxy.wire import Operation, UnreadableRequest, WireFormat, operation_of, parse, said

__all__ = ["ProxyHttp", "is_proxy_path"]

log = logging.getLogger("tollbook.proxy")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Gone(Exception):
    """The caller went away before its request was whole."""


MODELS_PATH = "/v1/models"
ListModels = Callable[[Caller], Awaitable[tuple[Headers, bytes]]]


def is_proxy_path(method: str, path: str) -> bool:
    """Whether `ProxyHttp` answers this: a live call, or the list of models."""
    return operation_of(path) is not None if method == "POST" else method == "GET" and path == MODELS_PATH


class ProxyHttp:
    """The ASGI application of the paths of live calls."""

    def __init__(self, carrier: Carrier, list_models: ListModels, *, max_body_bytes: int) -> None:
        self._carrier = carrier
        self._list_models = list_models
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        client = Client(send)
        operation = operation_of(scope["path"])
        if operation is None:
            return await self._models(scope, client)
        try:
            exchange = await self._exchange(operation, scope, receive)
        except _Gone:
            return None
        except Refused as refused:
            return await client.fail(refused.failure, operation.wire_format)
        return await self._carry(exchange, client, receive)

    async def _models(self, scope: Scope, client: Client) -> None:
        headers = [(name, value) for name, value in scope["headers"]]
        caller = read_caller(headers, scope.get("query_string", b""), {})
        try:
            told, body = await self._list_models(caller)
        except Refused as refused:
            return await client.fail(refused.failure, WireFormat.OPENAI_CHAT)
        await client.start(200, [*told, (b"content-length", str(len(body)).encode())])
        return await client.end(body)

    async def _carry(self, exchange: Exchange, client: Client, receive: Receive) -> None:
        """Carry the call for as long as the caller is there."""
        work = asyncio.current_task()
        assert work is not None
        left = False

        def gone(watch: asyncio.Future[Any]) -> None:
            nonlocal left
            if not watch.cancelled():
                left = True
                work.cancel()

        watching = asyncio.ensure_future(receive())
        watching.add_done_callback(gone)
        try:
            await self._carrier.carry(exchange, client)
        except asyncio.CancelledError:
            if not left:
                raise
            work.uncancel()
        except Exception:
            log.exception("a call could not be carried")
            await client.fail(
                failure(FailureKind.INTERNAL, "the call could not be carried"), exchange.wire_format
            )
        finally:
            watching.remove_done_callback(gone)
            watching.cancel()

    async def _exchange(self, operation: Operation, scope: Scope, receive: Receive) -> Exchange:
        headers = [(name, value) for name, value in scope["headers"]]
        _check_kind(headers)
        body = await self._body(receive)
        try:
            request = parse(body)
            told = said(operation, request)
        except UnreadableRequest as error:
            raise Refused(FailureKind.INVALID_REQUEST, str(error)) from None
        query = scope.get("query_string", b"")
        return Exchange(
            operation=operation,
            said=told,
            path=scope["path"],
            query=query,
            headers=headers,
            body=body,
            request=request,
            caller=read_caller(headers, query, request),
        )

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
            if size > self._max_body_bytes:
                limit = self._max_body_bytes
                raise Refused(FailureKind.PAYLOAD_TOO_LARGE, f"the request is over {limit} bytes")
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_kind(headers: list[tuple[bytes, bytes]]) -> None:
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    if kind.partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(FailureKind.INVALID_REQUEST, "the body must be JSON and its content-type say so")
    if any(name == b"content-encoding" and value not in (b"", b"identity") for name, value in headers):
        raise Refused(FailureKind.INVALID_REQUEST, "the body must not be compressed")
