"""`/api/v1/routes`: what live calls are routed by, and what would happen to one.

Routes of the operator's file are shown; those defined here come before them and can be replaced and deleted.
"""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field, ValidationError

from proxy.explain import ExplainRequest
from proxy.refusal import Refused
from proxy.route_files import RoutesFileError, sentences
from proxy.routes import Route
from tollbook.house import House
from tollbook.problems import Problem

__all__ = ["add_route_routes"]

PATH = "/api/v1/routes"


class RoutesReply(BaseModel):
    """Every route, in order of precedence."""

    routes: list[Route]
    own: list[str] = Field(description="names of those defined by this API; the others are in routes.toml")


class ExplainReply(BaseModel):
    """The steps in the order they would be tried."""

    model: str
    route: str | None
    fall_on: list[str] = Field(description="kinds of failure after which the next step is tried")
    steps: list[dict[str, Any]] = Field(description="targets; `why_not` says why one is not tried")


def add_route_routes(app: FastAPI, house: House) -> None:
    """The routes about routes."""

    @app.get(PATH, responses={200: {"model": RoutesReply}}, response_class=Response, tags=["routes"])
    async def routes() -> Response:
        """Every route."""
        table, own = house.proxy.routes.table, house.proxy.routes.own
        shown = [route.model_dump(mode="json") for route in table.routes]
        return _json({"routes": shown, "own": list(own)})

    @app.put(
        PATH + "/{name}",
        openapi_extra=_body(Route),
        responses={200: {"model": Route}},
        response_class=Response,
        tags=["routes"],
    )
    async def put(request: Request, name: str) -> Response:
        """Define the route of this name, or define it anew."""
        route = _read(Route, await request.body(), name=name)
        try:
            house.proxy.put_route(route)
        except RoutesFileError as error:
            raise Problem("conflict", str(error)) from error
        return _json(route.model_dump(mode="json"))

    @app.delete(PATH + "/{name}", status_code=204, tags=["routes"])
    async def delete(name: str) -> Response:
        """Forget a route that this API defined."""
        if not house.proxy.delete_route(name):
            raise Problem("not_found", "this API defined no route of that name")
        return Response(status_code=204)

    @app.post(
        PATH + "/explain",
        openapi_extra=_body(ExplainRequest),
        responses={200: {"model": ExplainReply}},
        response_class=Response,
        tags=["routes"],
    )
    async def explain(request: Request) -> Response:
        """What would happen to a call, without making it."""
        asked = _read(ExplainRequest, await request.body())
        try:
            return _json(house.proxy.explain(asked))
        except Refused as refused:
            raise Problem("call_refused", str(refused)) from None


_Model = TypeVar("_Model", bound=BaseModel)


def _read(model: type[_Model], body: bytes, **more: str) -> _Model:
    try:
        told = orjson.loads(body)
        return model.model_validate_json(orjson.dumps({**more, **told}))
    except ValidationError as error:
        raise Problem("invalid_request", "; ".join(sentences(error))) from None
    except (orjson.JSONDecodeError, TypeError):
        raise Problem("invalid_request", "the body must be a JSON object") from None


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
