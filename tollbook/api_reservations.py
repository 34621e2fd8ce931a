"""Checks and reservations over HTTP, by the shortest way: before FastAPI and its router.

They are asked before and after every model call. `begin` is what answers, whoever cut the request out of the
connection: `budget_protocol` for plain ones, `BudgetCheck` for the others. The API declares the same routes
for the reference (`add_reservation_routes`), over the same functions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from billing.budget import BudgetError, CheckReply, read_check
from billing.reservation import (
    CheckBatch,
    ReleaseBatch,
    ReservationReply,
    SettleBatch,
    SettleRequest,
    read_batch,
    read_settlement,
)
from billing.reservation_desk import ReservationDesk
from ingest.http_receiver import Answer
from tollbook.guard import Receive, Scope, Send, send_body
from tollbook.house import House
from tollbook.problems import Kind, Problem

__all__ = [
    "CHECK_PATH",
    "MAX_CHECK_BYTES",
    "REQUESTS",
    "RESERVATIONS_PATH",
    "Answer",
    "BudgetCheck",
    "add_reservation_routes",
    "answer_check",
    "begin",
    "budget_problem",
    "is_budget_path",
]

log = logging.getLogger("tollbook.api")

REQUESTS: tuple[type[BaseModel], ...] = (CheckBatch, SettleRequest, SettleBatch, ReleaseBatch)
"""Bodies that are read here, for the reference."""

CHECK_PATH = "/api/v1/budgets/check"
RESERVATIONS_PATH = "/api/v1/reservations/"
MAX_CHECK_BYTES = 64 << 10
JSON_HEADERS = [(b"content-type", b"application/json")]
_VERBS = ("settle", "release")
Reply = CheckReply | ReservationReply


def is_budget_path(method: str, path: str) -> bool:
    """Whether `begin` answers this: a check, a settlement, a release."""
    return method == "POST" and (path == CHECK_PATH or path.startswith(RESERVATIONS_PATH))


def begin(house: House, path: str, body: bytes) -> Answer | Coroutine[Any, Any, Answer]:
    """The answer to a request on a budget path, or what to wait for: a denial has status 200, and what is
    refused is a problem document. Never raises.
    """
    try:
        told = _begin(house.desk, path, body)
    except Exception as error:
        return _refusal(error)
    return Answer(200, JSON_HEADERS, told) if isinstance(told, bytes) else _awaited(told)


def _begin(desk: ReservationDesk, path: str, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
    if path != CHECK_PATH:
        return answer_reservation(desk, path.removeprefix(RESERVATIONS_PATH), body)
    if b'"items"' in body and _is_batch(body):
        return answer_check(desk, body)
    request = read_check(body)
    reply = desk.check_at_once(request)
    return _as_json(desk.check(request)) if reply is None else reply.to_json()


async def _as_json(asked: Coroutine[Any, Any, CheckReply]) -> bytes:
    return (await asked).to_json()


async def _awaited(told: Coroutine[Any, Any, bytes]) -> Answer:
    try:
        return Answer(200, JSON_HEADERS, await told)
    except Exception as error:
        return _refusal(error)


def _refusal(error: Exception) -> Answer:
    if isinstance(error, BudgetError):
        problem = budget_problem(error)
    elif isinstance(error, Problem):
        problem = error
    else:
        log.error("a budget request failed", exc_info=error)
        problem = Problem("internal", "the check could not be answered")
    headers = [(name.encode(), value.encode()) for name, value in problem.headers().items()]
    return Answer(problem.status, headers, problem.body())


class BudgetCheck:
    """The ASGI application of the paths that are asked with every model call."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a denial is an answer with status 200."""
        try:
            body = await _body(receive)
        except Problem as problem:
            answer = _refusal(problem)
        else:
            told = begin(self._house, scope["path"], body)
            answer = told if isinstance(told, Answer) else await told
        await send_body(send, answer.body, status=answer.status, headers=[*answer.headers])


async def _body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False) and len(body) <= MAX_CHECK_BYTES:
        message = await receive()
        body += message.get("body", b"")
    if len(body) > MAX_CHECK_BYTES:
        raise Problem("too_large", f"a check may have {MAX_CHECK_BYTES} bytes")
    return body


def budget_problem(error: BudgetError) -> Problem:
    """A fault of the budgets as the caller sees it."""
    title = (type(error).__doc__ or "").partition(";")[0].partition(":")[0].rstrip(".")
    kind = Kind(error.status, title, error.next_step)
    errors = [{"message": text} for text in error.sentences]
    return Problem(error.code, str(error), kind=kind, retry_after_s=error.retry_after_s, errors=errors)


async def answer_check(desk: ReservationDesk, body: bytes) -> bytes:
    """The reply to a check's JSON, or to a batch of them. Raises BudgetError."""
    if b'"items"' in body and _is_batch(body):
        batch = read_batch(CheckBatch, body)
        return await _each([desk.check(each) for each in batch.items])
    return (await desk.check(read_check(body))).to_json()


async def answer_reservation(desk: ReservationDesk, path: str, body: bytes) -> bytes:
    """The reply to `<id>/settle`, `<id>/release`, or `settle` and `release` of many. Raises BudgetError."""
    reservation_id, _, verb = path.rpartition("/")
    if verb not in _VERBS:
        raise Problem("not_found", "there is no such thing to do with a reservation")
    if not reservation_id:
        return await _answer_batch(desk, verb, body)
    if verb == "settle":
        reply = await desk.settle(reservation_id, read_settlement(body))
    else:
        reply = await desk.release(reservation_id)
    return reply.to_json()


async def _answer_batch(desk: ReservationDesk, verb: str, body: bytes) -> bytes:
    if verb == "release":
        released = read_batch(ReleaseBatch, body)
        return await _each([desk.release(each) for each in released.reservation_ids])
    settled = read_batch(SettleBatch, body)
    return await _each([desk.settle(each.reservation_id, each.settlement()) for each in settled.items])


def _is_batch(body: bytes) -> bool:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(told, dict) and "items" in told


async def _each(asked: Sequence[Coroutine[Any, Any, Reply]]) -> bytes:
    """The answers in order; what cannot be answered is a problem document in its place."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return b'{"items":[' + b",".join(_item(each) for each in answers) + b"]}"


def _item(answer: Reply | BaseException) -> bytes:
    if isinstance(answer, CheckReply | ReservationReply):
        return answer.to_json()
    if isinstance(answer, BudgetError):
        return budget_problem(answer).body()
    if isinstance(answer, Problem):
        return answer.body()
    raise answer


class Replies(BaseModel):
    """One answer for each item of a batch, in order; a problem document where there is none."""

    items: list[ReservationReply | dict[str, Any]]


def add_reservation_routes(app: FastAPI, house: House) -> None:
    """The routes of reservations, for the reference and for those who come through FastAPI."""
    one = RESERVATIONS_PATH + "{reservation_id}"
    told: dict[str, Any] = {
        "response_class": Response,
        "tags": ["budgets"],
        "responses": {200: {"model": ReservationReply}},
    }
    many = {**told, "responses": {200: {"model": Replies}}}

    @app.get(one, **told)
    async def reservation(reservation_id: str) -> Response:
        """How a reservation stands."""
        return _json((await house.desk.show(reservation_id)).to_json())

    @app.post(one + "/settle", openapi_extra=_request(SettleRequest), **told)
    async def settle(request: Request, reservation_id: str) -> Response:
        """Put what the call needed in the place of what was held."""
        path = f"{reservation_id}/settle"
        return _json(await answer_reservation(house.desk, path, await request.body()))

    @app.post(one + "/release", **told)
    async def release(reservation_id: str) -> Response:
        """Let go of what is held: the call is not made."""
        return _json(await answer_reservation(house.desk, f"{reservation_id}/release", b""))

    @app.post(RESERVATIONS_PATH + "settle", openapi_extra=_request(SettleBatch), **many)
    async def settle_many(request: Request) -> Response:
        """Settle several."""
        return _json(await answer_reservation(house.desk, "settle", await request.body()))

    @app.post(RESERVATIONS_PATH + "release", openapi_extra=_request(ReleaseBatch), **many)
    async def release_many(request: Request) -> Response:
        """Release several."""
        return _json(await answer_reservation(house.desk, "release", await request.body()))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _request(model: type[BaseModel]) -> dict[str, Any]:
    """A request body that the route reads itself, for the reference."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
