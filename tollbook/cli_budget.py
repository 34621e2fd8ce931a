"""`tollbook budget`: define budgets, see where they stand, ask whether something may be spent."""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them
# ruff: noqa: PLR0913, PLR0917  # a command's parameters are its options

from __future__ import annotations

import urllib.parse
from typing import Annotated, Any

import typer

from tollbook.cli_common import Json, Url, print_json, server

DENIED = 3

budget_app = typer.Typer(
    name="budget", help="Define budgets, list them, and check what may be spent.", no_args_is_help=True
)

Dimension = Annotated[str | None, typer.Option()]
Labels = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE; may be repeated.")]


@budget_app.command("set")
def set_budget(
    limit: Annotated[str, typer.Option(help="Limit per period, as a decimal.")],
    period: Annotated[
        str, typer.Option(help="minute, hour, day, week, month, total, rolling:5h or first_use:5h.")
    ] = "month",
    budget_id: Annotated[
        str | None, typer.Option("--id", help="Name; replaces the budget of that name.")
    ] = None,
    meter: Annotated[str, typer.Option(help="billed_usd, list_usd, tokens or calls.")] = "billed_usd",
    time_zone: Annotated[str, typer.Option(help="IANA zone in which periods begin.")] = "UTC",
    notify_at: Annotated[
        str | None, typer.Option(help="Record, and say nothing, above this fraction.")
    ] = None,
    warn_at: Annotated[str | None, typer.Option(help="Warn above this fraction, such as 0.8.")] = None,
    deny_at: Annotated[str, typer.Option(help="Deny above this fraction.")] = "1.0",
    on_unpriced: Annotated[str, typer.Option(help="deny, allow or dearest.")] = "deny",
    per_call: Annotated[str | None, typer.Option(help="The most that one call may need.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Decide and record, but deny nobody.")] = False,
    team: Dimension = None,
    project: Dimension = None,
    environment: Dimension = None,
    agent: Dimension = None,
    user: Dimension = None,
    session: Dimension = None,
    account: Dimension = None,
    provider: Dimension = None,
    model: Dimension = None,
    access: Dimension = None,
    label: Labels = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Define a budget for the calls that match every dimension given; none means all calls."""
    told = locals()
    definition: dict[str, Any] = {
        "scope": scope_of(told),
        **{name: told[name] for name in ("meter", "limit", "period", "time_zone", "on_unpriced")},
        "thresholds": [
            *([{"at": notify_at, "action": "notify"}] if notify_at else []),
            *([{"at": warn_at, "action": "warn"}] if warn_at else []),
            {"at": deny_at, "action": "deny"},
        ],
        **({"per_call": per_call} if per_call else {}),
        **({"shadow": True} if shadow else {}),
    }
    client = server(url)
    if budget_id:
        reply = client.put(f"/api/v1/budgets/{_quoted(budget_id)}", definition)
    else:
        reply = client.post("/api/v1/budgets", definition)
    if as_json:
        print_json(reply)
        return
    typer.echo(f"budget {reply['id']}: {reply['limit']} {reply['meter']} per {reply['period']}")


@budget_app.command("ls")
def list_budgets(url: Url = None, as_json: Json = False) -> None:
    """Print every budget and where it stands."""
    reply = server(url).get("/api/v1/budgets")
    if as_json:
        print_json(reply)
        return
    from tollbook.report import print_table

    columns = ["id", "scope", "meter", "period", "limit", "spent", "reserved", "remaining", "resets_at"]
    rows = [[_shown(budget[name]) for name in columns] for budget in reply["budgets"]]
    print_table({"columns": columns, "rows": rows, "truncated": False})


@budget_app.command("rm")
def remove_budget(budget_id: Annotated[str, typer.Argument()], url: Url = None) -> None:
    """Delete a budget; its events stay."""
    server(url).delete(f"/api/v1/budgets/{_quoted(budget_id)}")
    typer.echo(f"budget {budget_id} is deleted")


@budget_app.command("check")
def check_budget(
    usd: Annotated[str | None, typer.Option(help="Expected cost, as a decimal.")] = None,
    input_tokens: Annotated[int | None, typer.Option(help="Expected input tokens.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Expected output tokens.")] = None,
    team: Dimension = None,
    project: Dimension = None,
    environment: Dimension = None,
    agent: Dimension = None,
    user: Dimension = None,
    session: Dimension = None,
    account: Dimension = None,
    provider: Dimension = None,
    model: Dimension = None,
    access: Dimension = None,
    label: Labels = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask whether a call may be made. Exit code 3 when a budget denies it."""
    told = locals()
    scope = scope_of(told)
    asked = {name: told[name] for name in ("usd", "input_tokens", "output_tokens")}
    estimate = {name: value for name, value in asked.items() if value is not None}
    request = {
        "scope": {name: value for name, value in scope.items() if name != "model"},
        **({"model": model} if model else {}),
        **({"estimate": estimate} if estimate else {}),
    }
    reply = server(url).post("/api/v1/budgets/check", request)
    if as_json:
        print_json(reply)
    else:
        _print_reply(reply)
    raise typer.Exit(DENIED if reply["decision"] == "deny" else 0)


@budget_app.command("explain")
def explain_budgets(
    team: Dimension = None,
    project: Dimension = None,
    environment: Dimension = None,
    agent: Dimension = None,
    user: Dimension = None,
    session: Dimension = None,
    account: Dimension = None,
    provider: Dimension = None,
    model: Dimension = None,
    access: Dimension = None,
    label: Labels = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print which budgets a call would fall under, which it would not, and why."""
    told = locals()
    scope = scope_of(told)
    client = server(url)
    asked = {"scope": {name: value for name, value in scope.items() if name != "model"}}
    reply = client.post("/api/v1/budgets/check", asked | ({"model": model} if model else {}))
    budgets = client.get("/api/v1/budgets")["budgets"]
    matched = {each["id"] for each in reply["budgets"]}
    explained = [_explained(each, scope, matched=each["id"] in matched) for each in budgets]
    if as_json:
        print_json({"budgets": explained, "unmatched": reply["unmatched"]})
        return
    from tollbook.report import print_table

    columns = ["id", "matches", "why", "limit", "spent", "reserved", "remaining"]
    rows = [[_shown(each[name]) for name in columns] for each in explained]
    print_table({"columns": columns, "rows": rows, "truncated": False})


def _explained(budget: dict[str, Any], scope: dict[str, Any], *, matched: bool) -> dict[str, Any]:
    """Why a budget covers a call, or does not: the first dimension that is left out or differs."""
    standing = {name: budget[name] for name in ("id", "meter", "limit", "spent", "reserved", "remaining")}
    return {
        **standing,
        "matches": "yes" if matched else "no",
        "why": _why(budget["scope"], scope, matched=matched),
    }


def _why(wanted: dict[str, Any], told: dict[str, Any], *, matched: bool) -> str:
    if matched:
        return f"covers {_shown(wanted)}"
    flat = _flat(told)
    for name, value in _flat(wanted).items():
        if name not in flat:
            return f"names {name}, which is not told"
        if flat[name] != value:
            return f"is for {name} {value}"
    return "its model or provider is another one"


def _flat(scope: dict[str, Any]) -> dict[str, str]:
    labels = {f"label {key}": value for key, value in scope.get("labels", {}).items()}
    return {**{name: value for name, value in scope.items() if name != "labels"}, **labels}


SCOPE = {
    "team": "team",
    "project": "project",
    "environment": "environment",
    "agent": "agent",
    "user": "user_id",
    "session": "session_id",
    "account": "account_id",
    "provider": "provider",
    "model": "model",
    "access": "access",
}
"""Option -> key of a budget's scope."""


def scope_of(told: dict[str, Any]) -> dict[str, Any]:
    """The scope that a command's options name."""
    scope: dict[str, Any] = {key: told[option] for option, key in SCOPE.items() if told[option]}
    if told["label"]:
        scope["labels"] = dict(_label(text) for text in told["label"])
    return scope


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--label")
    return key, value


def _quoted(budget_id: str) -> str:
    return urllib.parse.quote(budget_id, safe="")


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}={part}" for key, part in value.items()) or "everything"
    return value


def _print_reply(reply: dict[str, Any]) -> None:
    typer.echo(f"{reply['decision']}: {reply['reason']}")
    for budget in reply["budgets"]:
        reserved = "" if budget["reserved"] == "0" else f", {budget['reserved']} reserved"
        typer.echo(
            f"  {budget['id']}: {budget['spent']} of {budget['limit']} {budget['meter']} spent{reserved}"
        )
    for advice in reply.get("advice", []):
        typer.echo(f"  {advice}")
