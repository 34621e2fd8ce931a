"""What a peer was seen to do with inputs, asked of us: `ours(case)` and how a peer's answer is compared.

The cases in `fixtures/proxy_cases/` are facts in our own shape: what is asked, what is given, what the peer
answered. `*` in a peer's answer stands for an id that it made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from catalog.doors import Doors, parse_address
from catalog.endpoints import EndpointBook
from catalog.provider_book import load_book
from proxy.counts import counts_of, flattened
from proxy.failure import Failure, classify, error_body
from proxy.redact import redact
from proxy.sse import EventReader
from proxy.translate import CannotCarry, answer_translator, translate_request, translated
from proxy.url_safety import UnsafeUrl, address_of, check_addresses, checked_url, is_metadata, is_public
from proxy.usage import Told, UsageTap
from proxy.wire import WireFormat
from tests.proxy_catalog_cases import CATALOG_ASKS, same_cost, same_lab
from tests.proxy_house_cases import HOUSE_ASKS, same_program

FIXTURES = Path(__file__).parent.parent / "fixtures" / "proxy_cases"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
Json = Any


@dataclass(frozen=True)
class Case:
    id: str
    asks: str
    given: Json
    peer: Json


def cases() -> list[Case]:
    return [Case(**one) for file in sorted(FIXTURES.glob("*.json")) for one in json.loads(file.read_text())]


def agrees(case: Case) -> bool:
    """Whether what we do says the same as what the peer did."""
    compare = _COMPARES.get(case.asks, _same)
    return compare(ours(case), case.peer)


def ours(case: Case) -> Json:
    return _ASKS[case.asks](case.given)


def _same(ours: Json, peer: Json) -> bool:
    """Equal, where `*` of the peer's is anything."""
    if peer == "*":
        return isinstance(ours, str)
    if isinstance(peer, dict) and isinstance(ours, dict):
        return peer.keys() == ours.keys() and all(_same(ours[key], value) for key, value in peer.items())
    if isinstance(peer, list) and isinstance(ours, list):
        return len(peer) == len(ours) and all(map(_same, ours, peer))
    return bool(ours == peer)


# Usage and streams


def _usage(told: Told) -> Json:
    found = {
        "input": told.input_tokens,
        "output": told.output_tokens,
        "cache_read": told.cache_read_tokens,
        "cache_write": told.cache_write_tokens,
        "cost": told.reported_cost_usd,
    }
    return None if told == Told(complete=told.complete) else found


def _tapped(chunks: list[str]) -> Told:
    tap = UsageTap(WireFormat.OPENAI_CHAT)
    for chunk in chunks:
        tap.feed(chunk.encode())
    return tap.told()


def _same_usage(ours: Json, peer: Json) -> bool:
    """Parts: the peer's zero for what was not told is our unknown."""
    if ours is None or peer is None:
        return ours is peer is None
    parts = all((peer[key] or 0) == (ours[key] or 0) for key in ("cache_read", "cache_write"))
    cost = None if peer["cost"] is None else Decimal(str(peer["cost"]))
    return parts and cost == ours["cost"] and all(peer[key] == ours[key] for key in ("input", "output"))


def _stream(given: Json) -> Json:
    told = _tapped(given["chunks"])
    return {"relayed": given["chunks"], "usage": _usage(told), "complete": told.complete}


def _same_stream(ours: Json, peer: Json) -> bool:
    relayed = "".join(ours["relayed"]) == "".join(peer["relayed"])
    complete = "complete" not in peer or peer["complete"] == ours["complete"]
    return relayed and complete and _same_usage(ours["usage"], peer["usage"])


def _events(given: Json) -> Json:
    reader = EventReader()
    found = [event for chunk in given["chunks"] for event in reader.feed(chunk.encode())]
    return found, reader.pending()


def _same_events(ours: Json, peer: Json) -> bool:
    """The peer hands out the last event without its end in some places and keeps it in others."""
    whole, rest = ours
    told = [[event.name.decode(), event.data.decode()] for event in whole if event.data != b"[DONE]"]
    last = [[rest.name.decode(), rest.data.decode()]] if rest is not None and rest.data != b"[DONE]" else []
    return peer["events"] in (told, told + last)


# Failures

_CLASSES = {
    "rate_limit": "rate_limit", "plan_limit": "rate_limit", "billing": "billing", "auth": "auth",
    "permission": "auth", "not_found": "not_found", "invalid_request": "invalid_request",
    "context_length": "invalid_request", "content_filter": "invalid_request", "client_error": "client_error",
    "payload_too_large": "payload_too_large", "overloaded": "server_error", "server_error": "server_error",
    "timeout": "timeout", "network": "network",
}  # fmt: skip


def _failure(given: Json) -> Failure:
    body = str(given.get("body", "")).encode()
    return classify(given.get("provider"), given["status"], {}, body, now=NOW)


def _message(given: Json) -> str:
    message = _failure(given).message
    return "<of the status>" if message.startswith("the provider answered") else message


def _context_length(given: Json) -> Json:
    found = _failure(given)
    if found.kind != "context_length":
        return None
    return {"message": found.message, "type": error_body(found, WireFormat.OPENAI_CHAT)["error"]["type"]}


def _openai_type(given: Json) -> Json:
    return error_body(_failure(given), WireFormat.OPENAI_CHAT)["error"]["type"]


# Addresses


def _private(given: Json) -> bool:
    address = address_of(given["address"])
    return address is not None and not is_public(address)


def _metadata(given: Json) -> bool:
    address = address_of(given["address"])
    return address is not None and is_metadata(address)


def _may_be_called(given: Json) -> bool:
    try:
        url = checked_url(given["url"], allow_private=given["allow_private"])
        if url.address is None:
            check_addresses(url, given["addresses"], allow_private=given["allow_private"])
    except UnsafeUrl:
        return False
    return True


def _own_base_url(given: Json) -> bool:
    """Whether a URL is safe, and an address of the provider's own (or of its regions and plans)."""
    try:
        checked_url(given["url"], allow_private=False)
    except UnsafeUrl:
        return False
    server = parse_address(given["url"])
    door = server and Doors(load_book()).at(server)
    families = {"zai": ("zai", "zhipuai")}.get(given["provider"], (given["provider"],))
    return bool(door and door.provider.id.startswith(families))


@cache
def _doors() -> EndpointBook:
    return EndpointBook(load_book())


def _door(given: Json) -> list[str]:
    """Every address of the provider's doors, without the version at its end."""
    found = _doors().find(given["provider"], access=given["access"])
    urls = (endpoint.url(model="m", variables=given.get("variables", {})) for endpoint in found)
    return list(urls)


def _same_door(ours: list[str], peer: str) -> bool:
    return any(url.startswith(f"{peer.rstrip('/')}/") for url in ours)


def _names(given: Json) -> bool:
    named = {endpoint.provider for endpoint in _doors().find(given["name"])}
    return given["provider"] in named


# Translation


def _request(given: Json) -> Json:
    source, target = WireFormat(given["source"]), WireFormat(given["target"])
    try:
        return translate_request(given["body"], source, target, model=given["model"])
    except CannotCarry as refused:
        return {"refused": list(refused.names)}


# What is a matter of wording, or of what the peer adds unasked: said in the README beside the cases.
_WORDING = {"stream", "store", "stream_options", "model", "include", "cache_control"}


def _plain(value: Json, *, top: bool = True) -> Json:
    if isinstance(value, list):
        return [_plain(one, top=False) for one in value]
    if not isinstance(value, dict):
        return value
    left = {
        key: one for key, one in value.items() if not (key == "cache_control" or (top and key in _WORDING))
    }
    if left.get("type") == "message":
        del left["type"]
    if left.get("type") == "input_image" and left.get("detail") == "auto":
        del left["detail"]
    if left.get("type") == "function" and left.get("strict") is False:
        del left["strict"]
    if top and left.get("instructions") == "You are a helpful assistant.":
        del left["instructions"]
    if "max_completion_tokens" in left:
        left["max_tokens"] = left.pop("max_completion_tokens")
    return {key: _plain(one, top=False) for key, one in left.items()}


def _same_request(ours: Json, peer: Json) -> bool:
    return _same(_plain(ours), _plain(peer))


def _answer(given: Json) -> Json:
    translator = answer_translator(WireFormat(given["source"]), WireFormat(given["target"]), {})
    return _facts(translator.body(given["body"]))


def _collected(given: Json) -> Json:
    translator = answer_translator(WireFormat(given["source"]), WireFormat(given["target"]), {})
    return _facts(translator.collected_body(given["stream"].encode()))


def _translated_stream(given: Json) -> Json:
    asking = {"stream": True, "stream_options": {"include_usage": True}}
    translator = answer_translator(WireFormat(given["source"]), WireFormat(given["target"]), asking)
    out = translator.feed(given["stream"].encode())
    broke = translator.finish() if translator.failed is None else b""
    return _stream_facts(out if translator.failed is not None else out + broke)


def _facts(body: Json) -> Json:
    """What an answer of any format comes to."""
    if body.get("error"):
        return {"error": body["error"]["message"]}
    if "choices" in body:
        choice = next(iter(body["choices"]), {"message": {}, "finish_reason": None})
        message = choice["message"]
        calls = [_call(call["id"], **call["function"]) for call in message.get("tool_calls") or ()]
        found = message.get("content"), message.get("reasoning_content"), calls, choice["finish_reason"]
    elif "output" in body:
        items = body["output"]
        texts = [p["text"] for i in items if i["type"] == "message" for p in i.get("content", ())]
        thoughts = [p["text"] for i in items if i["type"] == "reasoning" for p in i.get("summary", ())]
        calls = [
            _call(i["call_id"], i["name"], i["arguments"]) for i in items if i["type"] == "function_call"
        ]
        found = "".join(texts), "".join(thoughts), calls, None
    else:
        blocks = body["content"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        calls = [_call(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
        found = text, thoughts, calls, body["stop_reason"]
    return _named(*found, body.get("usage"))


def _named(text: Json, thoughts: Json, calls: Json, reason: Json, usage: Json) -> Json:
    counts = counts_of(flattened(usage))
    told = counts.input_tokens, counts.output_tokens, counts.cache_read_tokens, counts.cache_write_tokens
    return {
        "text": text or None,
        "thoughts": thoughts or None,
        "calls": calls,
        "reason": reason,
        "usage": [count or None for count in told],
    }


def _call(call_id: str, name: str, arguments: Json = None) -> Json:
    """Arguments as text, except that an empty text is an empty object."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, separators=(",", ":"))
    return {"id": call_id, "name": name, "arguments": text or "{}"}


def _stream_facts(stream: bytes) -> Json:
    """What a stream of chat chunks comes to."""
    text, thoughts, reason, usage = "", "", None, None
    calls: dict[int, Json] = {}
    for event in EventReader().feed(stream):
        if event.data == b"[DONE]":
            continue
        chunk = json.loads(event.data)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            delta = choice["delta"]
            text += delta.get("content") or ""
            thoughts += delta.get("reasoning_content") or ""
            reason = choice["finish_reason"] or reason
            for told in delta.get("tool_calls", ()):
                call = calls.setdefault(told["index"], {"id": None, "name": None, "arguments": ""})
                function = told.get("function", {})
                call["id"], call["name"] = told.get("id") or call["id"], function.get("name") or call["name"]
                call["arguments"] += function.get("arguments") or ""
    return _named(text, thoughts, list(calls.values()), reason, usage)


def _same_answer(ours: Json, peer: Json) -> bool:
    return _same(ours, peer if isinstance(peer, dict) and set(peer) == {"error"} else _facts(peer))


def _same_translated_stream(ours: Json, peer: Json) -> bool:
    """The peer translates each event by itself; ours tells usage and the reason with the end."""
    wanted = _stream_facts((peer or "").encode())
    if wanted["reason"] is None:  # the peer was given the middle of a stream only
        ours = {**ours, "reason": None}
    return _same(ours, wanted)


_book = cache(load_book)


def _echoes(given: Json) -> bool:
    turns = [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    chat = WireFormat.OPENAI_CHAT
    provider = _book().providers.get(given["provider"])
    lacks = provider.chat_lacks if provider else ()
    written = translated({"messages": turns}, chat, chat, model=given["model"], chat_lacks=lacks)
    return "reasoning_content" in written.body["messages"][0]


_ASKS: dict[str, Callable[[Json], Json]] = {
    **HOUSE_ASKS,
    **CATALOG_ASKS,
    "usage": lambda given: _usage(_tapped([json.dumps({"usage": given["usage"]})])),
    "usage_of_stream": lambda given: _usage(_tapped([given["stream"]])),
    "stream": lambda given: _translated_stream(given) if "source" in given else _stream(given),
    "events": _events,
    "another_may_serve": lambda given: given["status"] >= 400 and _failure(given).kind.another_may_serve,
    "message": _message,
    "context_length": _context_length,
    "openai_type": _openai_type,
    "class": lambda given: _CLASSES[_failure(given).kind],
    "is_billing": lambda given: _failure(given).kind == "billing",
    "redact": lambda given: redact(given["text"]),
    "private_address": _private,
    "metadata_address": _metadata,
    "address_literal": lambda given: address_of(given["host"]) is not None,
    "may_be_called": _may_be_called,
    "own_base_url": _own_base_url,
    "door": _door,
    "names": _names,
    "request": _request,
    "answer": _answer,
    "collected": _collected,
    "echoes_thoughts": _echoes,
}
_COMPARES: dict[str, Callable[[Json, Json], bool]] = {
    "usage": _same_usage,
    "usage_of_stream": _same_usage,
    "stream": lambda ours, peer: (_same_translated_stream if "text" in ours else _same_stream)(ours, peer),
    "events": _same_events,
    "door": _same_door,
    "request": _same_request,
    "answer": _same_answer,
    "collected": _same_answer,
    "program": same_program,
    "cost": same_cost,
    "lab_of": same_lab,
}
