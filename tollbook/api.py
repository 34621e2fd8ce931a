"""The HTTP API: usage, calls, SQL, budgets and operations, as a FastAPI application over a running house.

It computes nothing: figures come from the readers, budgets from the book in memory. Every error is
`application/problem+json` with a code and a next step, and never repeats what was sent. Telemetry and budget
checks do not come this way; the front answers them before FastAPI.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from billing.budget import Budget, BudgetError, CheckReply, CheckRequest
from proxy.explain import ExplainRequest
from proxy.routes import Route
from tollbook import metrics_page
from tollbook.api_budgets import (
    CHECK_PATH,
    BudgetCheck,
    BudgetReply,
    BudgetsReply,
    budget_problem,
    create_budget,
    delete_budget,
    list_budgets,
    replace_budget,
    show_budget,
)
from tollbook.api_calls import CallReply, CallsQuery, CallsReply, answer_call, answer_calls
from tollbook.api_catalog import add_catalog_routes
from tollbook.api_emitters import EmittersReply, answer_emitters
from tollbook.api_jobs import add_job_routes
from tollbook.api_plans import PlansReply, answer_plans
from tollbook.api_reservations import REQUESTS, add_reservation_routes, answer_check
from tollbook.api_routes import add_route_routes
from tollbook.api_usage import UsageQuery, UsageReply, answer_usage
from tollbook.house import House
from tollbook.problems import KINDS, MEDIA_TYPE, Problem
from tollbook.reader_pool import Form

__all__ = ["BudgetCheck", "create_app"]

log = logging.getLogger("tollbook.api")

MEDIA_TYPES: dict[str, Form] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.arrow.stream": "arrow",
}
CONTENT_TYPES: dict[Form, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8; header=present",
    "arrow": "application/vnd.apache.arrow.stream",
}
REF = "#/components/schemas/{model}"
TRUNCATED_HEADER = "tollbook-truncated"


class SqlRequest(BaseModel):
    """One reading statement on the published tables, with parameters for `?` or `$name`."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    query: str = Field(max_length=100_000)
    params: list[Any] | dict[str, Any] | None = None


class SqlReply(BaseModel):
    """Rows as arrays. DECIMAL and large HUGEINT are strings, times RFC 3339, maps objects, NULL null."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool = Field(description="whether rows beyond sql.max_rows were left out")


class Health(BaseModel):
    """Journal offsets: on disk, in the ledger, in usage.duckdb."""

    status: str
    acknowledged: int
    committed: int
    published: int


class Readiness(BaseModel):
    """Whether every part is up, and where the house listens."""

    ready: bool
    reasons: list[str]
    http: str | None
    grpc: str | None


class ProblemReply(BaseModel):
    """What went wrong, and what to do next (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str = Field(description="one of " + ", ".join(KINDS) + ", or of the budgets'")
    detail: str
    next: str


def create_app(house: House) -> FastAPI:
    """The application over `house`."""
    app = FastAPI(
        title="tollbook",
        version=version("tollbook"),
        summary="Who served each model call, what covered it, what it cost.",
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": ProblemReply, "content": {MEDIA_TYPE: {}}}},
    )
    _handle_errors(app)
    _add_figures(app, house)
    _add_budgets(app, house)
    add_reservation_routes(app, house)
    add_catalog_routes(app, house)
    add_job_routes(app, house)
    add_route_routes(app, house)
    _add_operations(app, house)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return app


def _add_figures(app: FastAPI, house: House) -> None:
    @app.get("/api/v1/usage", responses=_tables(UsageReply), response_class=Response, tags=["figures"])
    async def usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Response:
        """What was used and what it cost, from the hourly rollups."""
        form = accepted(request)
        return _table(await answer_usage(house.readers, query, form), form)

    @app.get("/api/v1/calls", responses=_json(CallsReply), response_class=Response, tags=["figures"])
    async def calls(query: Annotated[CallsQuery, Query()]) -> Response:
        """Single calls, newest first."""
        return _table(await answer_calls(house.readers, query))

    @app.get("/api/v1/calls/{call_id}", responses=_json(CallReply), response_class=Response, tags=["figures"])
    async def call(call_id: str) -> Response:
        """One call: its records, the evidence, the price rows and the arithmetic."""
        return _table(await answer_call(house, call_id))

    @app.get("/api/v1/emitters", responses=_json(EmittersReply), response_class=Response, tags=["figures"])
    async def emitters() -> Response:
        """Who tells of calls, how completely, and what to change."""
        return _table(await answer_emitters(house.readers))

    @app.get("/api/v1/plans", responses=_json(PlansReply), response_class=Response, tags=["figures"])
    async def plans() -> Response:
        """Where plans stand: windows, pace, value against the fee, the fee over teams."""
        return _table(await answer_plans(house.readers))

    @app.post("/api/v1/sql", responses=_tables(SqlReply), response_class=Response, tags=["figures"])
    async def sql(request: Request, asked: SqlRequest) -> Response:
        """One reading statement on the published tables."""
        form = accepted(request)
        answer = await house.readers.query(asked.query, asked.params, lane="sql", form=form)
        return _table(answer.body, form, truncated=answer.truncated)


def _add_budgets(app: FastAPI, house: House) -> None:
    @app.get("/api/v1/budgets", responses=_json(BudgetsReply), response_class=Response, tags=["budgets"])
    async def budgets() -> Response:
        """Every budget and where it stands."""
        return _table(list_budgets(house))

    @app.post("/api/v1/budgets", openapi_extra=_body(Budget), **_created(BudgetReply), tags=["budgets"])
    async def define(request: Request) -> Response:
        """Define a budget."""
        return Response(await create_budget(house, await request.body()), 201, media_type="application/json")

    @app.post(
        CHECK_PATH,
        openapi_extra=_body(CheckRequest),
        responses=_json(CheckReply),
        response_class=Response,
        tags=["budgets"],
    )
    async def check(request: Request) -> Response:
        """May this be spent? A denial is an answer, with status 200."""
        return _table(await answer_check(house.desk, await request.body()))

    one = "/api/v1/budgets/{budget_id}"

    @app.get(one, responses=_json(BudgetReply), response_class=Response, tags=["budgets"])
    async def budget(budget_id: str) -> Response:
        """One budget and where it stands."""
        return _table(show_budget(house, budget_id))

    @app.put(one, openapi_extra=_body(Budget), responses=_json(BudgetReply), tags=["budgets"])
    async def replace(request: Request, budget_id: str) -> Response:
        """Define the budget of this id, or define it anew."""
        return _table(await replace_budget(house, budget_id, await request.body()))

    @app.delete(one, status_code=204, tags=["budgets"])
    async def delete(budget_id: str) -> Response:
        """Delete a budget; its events stay."""
        await delete_budget(house, budget_id)
        return Response(status_code=204)


def _add_operations(app: FastAPI, house: House) -> None:
    @app.get("/healthz", responses=_json(Health), response_class=Response, tags=["operations"])
    async def healthz() -> Response:
        """Whether it answers, and how far every part has come, counting calls whose answers have ended."""
        await house.proxy.recorded()
        return _table(orjson.dumps({"status": "ok" if house.ready else "degraded", **_offsets(house)}))

    @app.get("/readyz", responses=_json(Readiness), response_class=Response, tags=["operations"])
    async def readyz() -> Response:
        """Whether every part is up."""
        if not house.ready:
            raise Problem("not_ready", "; ".join(house.reasons), reasons=house.reasons, retry_after_s=1)
        places = {name: house.places.get(name) for name in ("http", "grpc")}
        return _table(orjson.dumps({"ready": True, "reasons": [], **places}))

    @app.get("/metrics", response_class=Response, tags=["operations"])
    async def metrics() -> Response:
        """Counters in the Prometheus text format."""
        page = metrics_page.render({"ready": int(house.ready), **house.counters()})
        return Response(page, headers={"content-type": metrics_page.CONTENT_TYPE})


def _offsets(house: House) -> dict[str, int]:
    return {
        "acknowledged": house.acknowledged,
        "committed": house.committed,
        "published": house.published,
    }


# --- answers -----------------------------------------------------------------------------------------------


def accepted(request: Request) -> Form:
    """The format that the Accept header asks for first and that there is; Problem `not_acceptable`."""
    wanted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    for media_type in wanted:
        if media_type in ("", "*/*", "application/*"):
            return "json"
        if media_type in MEDIA_TYPES:
            return MEDIA_TYPES[media_type]
    raise Problem("not_acceptable", "none of the formats in the Accept header can be given")


def _table(body: bytes, form: Form = "json", *, truncated: bool = False) -> Response:
    headers = {"content-type": CONTENT_TYPES[form]}
    if form != "json":
        headers[TRUNCATED_HEADER] = "true" if truncated else "false"
    return Response(body, headers=headers)


def _json(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}}


def _tables(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"model": model, "content": {name: {} for name in MEDIA_TYPES if name != "application/json"}}
    }


def _created(model: type[BaseModel]) -> dict[str, Any]:
    return {"status_code": 201, "responses": {201: {"model": model}}, "response_class": Response}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """A request body that the route reads itself, for the reference."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        requests: list[type[BaseModel]] = [Budget, CheckRequest, ExplainRequest, Route, *REQUESTS]
        _, bodies = models_json_schema([(each, "validation") for each in requests], ref_template=REF)
        document["components"]["schemas"].update(bodies["$defs"])
        app.openapi_schema = document
    return app.openapi_schema


# --- errors ------------------------------------------------------------------------------------------------


def _handle_errors(app: FastAPI) -> None:
    def answering(kind: type[Exception], as_problem: Callable[[Any], Problem]) -> None:
        async def handler(_request: Request, error: Exception) -> Response:
            problem = as_problem(error)
            return Response(problem.body(), problem.status, headers=problem.headers())

        app.add_exception_handler(kind, handler)

    answering(Problem, lambda problem: problem)
    answering(BudgetError, budget_problem)
    answering(RequestValidationError, invalid_request)
    answering(HTTPException, _http_problem)
    answering(Exception, _internal)


def invalid_request(error: RequestValidationError) -> Problem:
    """What does not validate, by place and reason; never what was sent."""
    errors = [
        {"at": ".".join(str(part) for part in each["loc"]), "message": _message(each)}
        for each in error.errors()
    ]
    places = ", ".join(dict.fromkeys(each["at"] for each in errors))
    return Problem("invalid_request", f"not valid: {places}", errors=errors)


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "is not known here"
    if error["type"] == "json_invalid":
        return "the body is not JSON"
    return str(error["msg"]).removeprefix("Value error, ")


def _http_problem(error: HTTPException) -> Problem:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return Problem(code, str(error.detail))


def _internal(_error: Exception) -> Problem:
    return Problem("internal", "the request could not be answered")
