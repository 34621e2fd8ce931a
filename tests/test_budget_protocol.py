"""The short way of budget requests gives the same answers as the long one, however the bytes arrive."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.shell_server import Running, running

CHECK = "/api/v1/budgets/check"
JSON = ("content-type: application/json",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("protocol")
    with running(folder) as house:
        budget = {"id": "core", "scope": {"team": "core"}, "limit": "10", "period": "day"}
        entry = {"budget": budget, "offset": 1, "spend": []}
        house.house.desk.take_snapshot({"seq": 1, "offset": 5000, "at_s": 0, "budgets": [entry]})
        yield house


@dataclass(slots=True)
class Wire:
    """A connection on which every byte is ours."""

    port: int
    socket: socket.socket
    kept: bytes = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        while b"\r\n\r\n" not in self.kept:
            self._more()
        head, _, rest = self.kept.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        self.kept = rest
        while len(self.kept) < length:
            self._more()
        body, self.kept = self.kept[:length], self.kept[length:]
        return int(first.split(" ")[1]), headers, json.loads(body)

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, f"closed after {self.kept!r}"
        self.kept += data

    def is_closed(self) -> bool:
        return self.socket.recv(1) == b""


@pytest.fixture
def wire(server: Running) -> Iterator[Wire]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connected:
        yield Wire(server.port, connected)


def request(
    body: object, *headers: str, path: str = CHECK, host: str = "127.0.0.1", version: str = "1.1"
) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", f"host: {host}", *headers, f"content-length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def check(usd: str = "1", **more: object) -> dict[str, object]:
    return {"scope": {"team": "core"}, "estimate": {"usd": usd}, **more}


BODIES = [
    check(),
    check("100"),
    check(reserve=True, ttl_s=1),
    {"items": [check(), {"estimate": 1}]},
    {"estimate": {"usd": 1.0}},
    b"no json",
    check(model="fault"),
]


def same(told: Any) -> Any:
    """What two answers must share: what follows from the moment is left out."""
    status, headers, body = told
    changing = {"reservation_id", "expires_at", "budgets"}
    return (
        status,
        headers | {"date": "", "content-length": ""},
        {k: v for k, v in body.items() if k not in changing},
    )


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_both_ways_give_the_same_answer(wire: Wire, body: object) -> None:
    wire.send(request(body, *JSON))
    short = wire.answer()
    wire.send(request(body, *JSON, "origin: http://127.0.0.1"))
    assert same(wire.answer()) == same(short)
    assert short[1]["x-content-type-options"] == "nosniff"


def test_a_request_may_come_in_any_pieces(wire: Wire) -> None:
    whole = request(check(), *JSON)
    for size in (1, 7, 40, len(whole) - 3):
        for start in range(0, len(whole), size):
            wire.send(whole[start : start + size])
        assert wire.answer()[2]["decision"] == "allow"


def test_requests_sent_ahead_are_answered_in_order(wire: Wire) -> None:
    bodies = [check(f"0.0000{n}", reserve=n % 3 == 0, ttl_s=1) for n in range(1, 60)]
    wire.send(b"".join(request(body, *JSON) for body in bodies))
    answers = [wire.answer()[2] for _ in bodies]
    assert [each["estimate_usd"] for each in answers] == [f"0.0000{n}".rstrip("0") for n in range(1, 60)]
    assert all(
        (each["reservation_id"] is not None) == (n % 3 == 0) for n, each in enumerate(answers, start=1)
    )


def test_other_requests_on_the_same_connection_go_the_long_way(wire: Wire) -> None:
    listing = b"GET /api/v1/budgets HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    for _ in range(3):
        wire.send(request(check(), *JSON) + listing + request(check("20"), *JSON))
        assert wire.answer()[2]["decision"] == "allow"
        assert [each["id"] for each in wire.answer()[2]["budgets"]] == ["core"]
        assert wire.answer()[2]["decision"] == "deny"


def test_a_reservation_is_settled_and_released_on_the_short_way(wire: Wire) -> None:
    for verb, body, state in (("settle", {"usd": "0.5"}, "settled"), ("release", b"", "released")):
        wire.send(request(check(reserve=True), *JSON))
        path = f"/api/v1/reservations/{wire.answer()[2]['reservation_id']}/{verb}"
        wire.send(request(body, *JSON, path=path))
        assert wire.answer()[2]["state"] == state
    wire.send(request(b"", *JSON, path=f"/api/v1/reservations/res_{0:032x}/release"))
    assert wire.answer()[0] == 404


@pytest.mark.parametrize(
    ("headers", "host", "code"),
    [
        (JSON, "rebound.example", "foreign_host"),
        ((*JSON, "host: 127.0.0.1"), "127.0.0.1", "foreign_host"),
        ((*JSON, "origin: http://evil.example"), "127.0.0.1", "foreign_origin"),
        (("content-type: text/plain",), "127.0.0.1", "unsupported_media_type"),
        ((), "127.0.0.1", "unsupported_media_type"),
    ],
)
def test_the_guard_stands_before_the_short_way_too(
    wire: Wire, headers: tuple[str, ...], host: str, code: str
) -> None:
    for _ in range(2):  # what was read once is remembered
        wire.send(request(check(), *headers, host=host))
        status, told, body = wire.answer()
        assert (status >= 400, body["code"]) == (True, code)
        assert told["x-content-type-options"] == "nosniff"


def test_what_is_not_plain_is_answered_all_the_same(wire: Wire) -> None:
    body = json.dumps(check()).encode()
    head = f"POST {CHECK} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
    wire.send(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert wire.answer()[2]["decision"] == "allow"
    wire.send(head + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(body))
    assert wire.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(body)
    assert wire.answer()[2]["decision"] == "allow"
    wire.send(request(b"{" + b" " * 70_000 + b"}", *JSON))
    assert wire.answer()[2]["code"] == "too_large"


@pytest.mark.parametrize(("version", "headers"), [("1.0", ()), ("1.1", ("connection: close",))])
def test_who_wants_to_leave_is_let_go(wire: Wire, version: str, headers: tuple[str, ...]) -> None:
    wire.send(request(check(), *JSON, *headers, version=version))
    assert wire.answer()[1]["connection"] == "close"
    assert wire.is_closed()


def test_what_is_not_http_is_refused_as_before(wire: Wire) -> None:
    wire.send(request(check(), *JSON) + b"nonsense\r\n\r\n")
    assert wire.answer()[2]["decision"] == "allow"
    assert (wire.kept or wire.socket.recv(64)).startswith(b"HTTP/1.1 400 ")
