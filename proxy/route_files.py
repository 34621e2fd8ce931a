"""Where routes and doors are kept: the operator's `routes.toml`, and what the API defined, in `routes.json`.

The operator's file is read at the start and refused with the place of every mistake, never with a value. What
the API defines is written before it is answered and takes the place of a route of the same name.

    RoutesFileError   a file that cannot be used
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import orjson
from pydantic import Field, ValidationError, field_validator

from proxy.doors import Door, Strict
from proxy.routes import Route, RouteTable

__all__ = ["RouteFiles", "RoutesFileError"]

MAX_ROUTES = 512


class RoutesFileError(Exception):
    """A routes file that cannot be used; a line for each place."""


class RoutesFile(Strict):
    """routes.toml."""

    door: list[Door] = Field(default_factory=list, max_length=MAX_ROUTES)
    route: list[Route] = Field(default_factory=list, max_length=MAX_ROUTES)

    @field_validator("route")
    @classmethod
    def _once(cls, routes: list[Route]) -> list[Route]:
        if len({route.name for route in routes}) < len(routes):
            raise ValueError("two routes have the same name")
        return routes


class RouteFiles:
    """The routes of a data directory. Raises RoutesFileError."""

    def __init__(self, data_dir: Path) -> None:
        told = _read_toml(data_dir / "routes.toml")
        self.doors = tuple(told.door)
        self._file = RouteTable(told.route)
        self._path = data_dir / "routes.json"
        self.own = {route.name: route for route in _read_json(self._path)}

    @property
    def table(self) -> RouteTable:
        """All routes of now."""
        return self._file.with_routes(self.own)

    def put(self, route: Route) -> None:
        """Define a route, or define it anew."""
        if len(self.own) >= MAX_ROUTES and route.name not in self.own:
            raise RoutesFileError(f"there are {MAX_ROUTES} routes already")
        self._write({**self.own, route.name: route})

    def delete(self, name: str) -> bool:
        """Forget a route that the API defined; whether there was one."""
        if name not in self.own:
            return False
        self._write({key: route for key, route in self.own.items() if key != name})
        return True

    def _write(self, own: dict[str, Route]) -> None:
        body = orjson.dumps([route.model_dump(mode="json") for route in own.values()])
        aside = self._path.with_suffix(".new")
        with aside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
        self.own = own


def _read_toml(path: Path) -> RoutesFile:
    try:
        return RoutesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return RoutesFile()
    except (OSError, UnicodeDecodeError) as error:
        raise RoutesFileError(f"{path}: cannot be read ({type(error).__name__})") from None
    except tomllib.TOMLDecodeError as error:
        raise RoutesFileError(f"{path}: is not TOML: {error}") from None
    except ValidationError as error:
        raise RoutesFileError("\n".join(f"{path}: {each}" for each in sentences(error))) from None


def _read_json(path: Path) -> list[Route]:
    try:
        return [Route.model_validate(each) for each in orjson.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RoutesFileError(f"{path}: cannot be read ({type(error).__name__})") from None


def sentences(error: ValidationError) -> list[str]:
    """One sentence for each place that does not validate, without what stands there."""
    told = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in told]
