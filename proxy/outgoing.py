"""A caller's request as it goes to a provider: the same bytes, but for what must differ.

Of the headers everything goes on, since providers check their own clients' headers: except what belongs to
one connection only, what is said to tollbook, and, where our key opens the door, the caller's own key. Of the
body only the model's name is changed where the provider knows it by another, and a stream is asked to tell
its usage where its caller did not ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from catalog.endpoints import Endpoint
from proxy.caller import OWN_PREFIX, Headers, without_key
from proxy.catalogue import SPOKEN
from proxy.edits import with_model, with_stream_usage
from proxy.exchange import CredentialKind, Exchange, Target, Way
from proxy.json_values import dumps, exact
from proxy.translate import CannotCarry, translated
from proxy.wire import WireFormat

__all__ = ["Outgoing", "outgoing"]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
        b"accept-encoding",
    }
)
_KEYS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"})
_DIALECT: Final = (b"anthropic-", b"openai-", b"x-stainless-", b"x-goog-", b"chatgpt-")
"""Headers that mean something in one dialect only."""
_READABLE: Final = (b"gzip", b"deflate", b"identity")


@dataclass(slots=True)
class Outgoing:
    """What is sent. `spoken` is the target's dialect; `adds_usage`: the usage event was not asked for by the
    caller and must not reach it. `left_out` are hints that the target's dialect has no word for.
    """

    url: str = field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    spoken: WireFormat
    adds_usage: bool = False
    left_out: tuple[str, ...] = ()


def outgoing(exchange: Exchange, way: Way) -> Outgoing:
    """The request for one target. Raises CannotCarry and EndpointError."""
    target = way.target
    spoken = SPOKEN[target.endpoint.format]
    same = spoken is exchange.wire_format
    if not same and exchange.wire_format is WireFormat.GOOGLE_GENERATE:
        _check_stream(exchange)
    body, request, left_out = _body(exchange, target, spoken)
    asks = spoken is WireFormat.OPENAI_CHAT and exchange.said.streaming and _may_ask(target, request)
    if asks:
        body = with_stream_usage(body, request)
    if not way.url:
        way.headers = tuple(_headers(exchange, target, same=same))
        way.url = _url(exchange, target, same=same)
    return Outgoing(
        url=way.url,
        headers=way.headers,
        body=body,
        spoken=spoken,
        adds_usage=asks and same,
        left_out=left_out,
    )


def _check_stream(exchange: Exchange) -> None:
    """Gemini's other way to stream, one long JSON array, is written by no other dialect."""
    if exchange.said.streaming and b"alt=sse" not in exchange.head.query.split(b"&"):
        raise CannotCarry(["streamGenerateContent without ?alt=sse"])


def _body(
    exchange: Exchange, target: Target, spoken: WireFormat
) -> tuple[bytes, dict[str, Any], tuple[str, ...]]:
    request = exchange.request
    if spoken is not exchange.wire_format:
        told = translated(
            *(exact(request, exchange.body), exchange.wire_format, spoken),
            model=target.model,
            streaming=exchange.said.streaming,
            chat_lacks=target.facts.chat_lacks,
        )
        return dumps(told.body), told.body, told.left_out
    if spoken is WireFormat.GOOGLE_GENERATE or request.get("model") == target.model:
        return exchange.body, request, ()
    renamed = {**request, "model": target.model}
    return with_model(exchange.body, request, target.model), renamed, ()


def _may_ask(target: Target, request: dict[str, Any]) -> bool:
    options = request.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    return not asked and "stream_options" not in target.facts.chat_lacks


def _url(exchange: Exchange, target: Target, *, same: bool) -> str:
    endpoint = target.endpoint
    if target.base_url != endpoint.base_url:
        endpoint = replace(endpoint, base_url=target.base_url, regions=())
    url = endpoint.url(model=target.model, stream=exchange.said.streaming, variables=target.variables)
    if exchange.operation.counts_tokens:
        url = _counting(url, endpoint)
    if not same:
        return url
    query = without_key(exchange.head.query).decode("latin-1")
    bare, _, own = url.partition("?")
    told = {pair.partition("=")[0] for pair in query.split("&")} | {"alt"}  # how Gemini is to stream
    asked = [query, *(pair for pair in own.split("&") if pair.partition("=")[0] not in told)]
    return "?".join(filter(None, (bare, "&".join(filter(None, asked)))))


def _counting(url: str, endpoint: Endpoint) -> str:
    if SPOKEN[endpoint.format] is WireFormat.GOOGLE_GENERATE:
        return url.partition("?")[0].rpartition(":")[0] + ":countTokens"
    return url + "/count_tokens"


def _headers(exchange: Exchange, target: Target, *, same: bool) -> Headers:
    own_key = target.credential_kind is CredentialKind.CALLER
    moved = own_key and not same
    dropped = _HOP_BY_HOP | _named_by_connection(exchange.headers)
    kept = [
        (name, value)
        for name, value in exchange.headers
        if name not in dropped
        and not name.startswith(OWN_PREFIX)
        and ((own_key and not moved) or name not in _KEYS)
        and (same or not name.startswith(_DIALECT))
    ]
    told = {name for name, _ in kept}
    added = [(name.encode(), value.encode()) for name, value in target.endpoint.headers]
    if not own_key or moved or not told & _KEYS:
        key = target.credential.reveal() if target.credential is not None else ""
        added += [(n.encode(), v.encode()) for n, v in target.endpoint.auth_headers(key).items() if key]
    if not own_key:
        kept = [(name, _joined(name, value, target.endpoint)) for name, value in kept]
    kept += [(name, value) for name, value in added if name not in told]
    return [*kept, (b"accept-encoding", _accepted(exchange, same=same))]


def _joined(name: bytes, value: bytes, endpoint: Endpoint) -> bytes:
    """The caller's value of a header, with what the door asks of everybody before it."""
    asked = dict(endpoint.headers).get(name.decode("latin-1"), "")
    relayed = name.decode("latin-1") in endpoint.relayed
    return f"{asked},".encode() + value if asked and relayed and asked.encode() not in value else value


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    named = [value for name, value in headers if name == b"connection"]
    return frozenset(part.strip().lower() for value in named for part in value.split(b","))


def _accepted(exchange: Exchange, *, same: bool) -> bytes:
    """Encodings that the caller takes and that usage can be read through; none for streams."""
    if exchange.said.streaming or not same:
        return b"identity"
    told = b",".join(value for name, value in exchange.headers if name == b"accept-encoding")
    kept = [part.strip() for part in told.split(b",") if part.strip().partition(b";")[0] in _READABLE]
    return b", ".join(kept) or b"identity"
