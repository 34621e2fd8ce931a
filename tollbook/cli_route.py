"""`tollbook route`: what live calls are routed by, and what would happen to one."""

# a command's parameters are its options

from __future__ import annotations

from typing import Annotated, Any

import typer

from tollbook.cli_common import Json, Url, print_json, server

route_app = typer.Typer(name="route", help="Routes of live calls.", no_args_is_help=True)


@route_app.command("ls")
def list_routes(url: Url = None, as_json: Json = False) -> None:
    """Print every route, in order of precedence."""
    told = server(url).get("/api/v1/routes")
    if as_json:
        return print_json(told)
    for route in told["routes"]:
        targets = " -> ".join(_rule(rule) for rule in route["target"])
        typer.echo(f"{route['name']}  {', '.join(route['models'])}  {targets}")
    if not told["routes"]:
        typer.echo("no routes: the model, the key and the catalogue decide")
    return None


@route_app.command("explain")
def explain(
    model: Annotated[str, typer.Argument(help="The model as a caller writes it.")],
    path: Annotated[str, typer.Option(help="Where it would be sent.")] = "/v1/chat/completions",
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as the caller would send.")] = None,
    input_tokens: Annotated[int, typer.Option(min=0, help="Size of the request.")] = 0,
    tools: Annotated[bool, typer.Option("--tools", help="It has tools.")] = False,
    images: Annotated[bool, typer.Option("--images", help="It has images.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print which targets would be tried, in order, and why others would not. Nothing is sent."""
    headers = dict(_pair(text) for text in header or ())
    asked: dict[str, Any] = {"model": model, "path": path, "headers": headers}
    asked |= {"input_tokens": input_tokens, "tools": tools, "images": images}
    told = server(url).post("/api/v1/routes/explain", asked)
    if as_json:
        return print_json(told)
    typer.echo(f"route {told['route']}" if told["route"] else "no route: the model and the key decide")
    for number, step in enumerate(told["steps"], start=1):
        typer.echo(f"{number}. {_step(step)}")
    return None


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter("must be NAME=VALUE", param_hint="--header")
    return name, value


def _rule(rule: dict[str, Any]) -> str:
    return "/".join(part for part in (rule["provider"], rule["model"]) if part)


def _step(step: dict[str, Any]) -> str:
    if step["why_not"]:
        return f"{step['provider']}: not tried: {step['why_not']}"
    key = {"caller": "the caller's key", "vault": f"our key ({step['account']})", "none": "no key"}[
        step["key"]
    ]
    late = f"; later, because of {step['late']}" if step["late"] else ""
    return f"{step['provider']}/{step['model']} ({step['access']}) with {key} at {step['url']}{late}"
