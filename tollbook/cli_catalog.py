"""`tollbook price` and `tollbook catalog`: why a price, which model an id is, what an update would change.

They read the catalogue of the data directory and need no running server. Nothing is fetched from anywhere.
"""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them
# ruff: noqa: PLR0913, PLR0917  # a command's parameters are its options

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tollbook.cli_common import Json, print_json
from tollbook.errors import TollbookError

if TYPE_CHECKING:
    from catalog.report import CatalogReport

price_app = typer.Typer(name="price", help="Explain prices.", no_args_is_help=True)
catalog_app = typer.Typer(
    name="catalog", help="Look into the catalogue, compare its prices, update it.", no_args_is_help=True
)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the journal, ledger and usage.duckdb.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file, instead of tollbook.toml.")]
Overlay = Annotated[
    Path | None, typer.Option("--overlay", help="Price file of your own, or a folder of them.")
]
At = Annotated[str | None, typer.Option("--at", help="Moment: RFC 3339 or a date; default: now.")]
Tokens = Annotated[int, typer.Option(min=0)]


@price_app.command("explain")
def explain_price(
    model: Annotated[str, typer.Argument(help="Model id as served.")],
    provider: Annotated[
        str | None, typer.Option(help="Provider id or alias, where the id does not tell.")
    ] = None,
    at: At = None,
    input_tokens: Annotated[int, typer.Option("--input", min=0, help="Uncached input tokens.")] = 0,
    output_tokens: Annotated[int, typer.Option("--output", min=0, help="Output tokens.")] = 0,
    cache_read: Tokens = 0,
    cache_write_5m: Tokens = 0,
    cache_write_1h: Tokens = 0,
    batch: Annotated[bool, typer.Option("--batch", help="Sent through the batch API.")] = False,
    service_tier: Annotated[str | None, typer.Option(help="flex, priority, ...")] = None,
    speed: Annotated[str | None, typer.Option(help="fast, ...")] = None,
    inference_geo: Annotated[str | None, typer.Option(help="us, ...")] = None,
    billing: Annotated[str | None, typer.Option(help="Access, such as subscription.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Print what some usage costs, from which price row, and the arithmetic. Exit code 1 without a price."""
    from catalog.api_shapes import PriceItem

    told = locals()
    usage = {"input": input_tokens, "output": output_tokens}
    usage |= {name: told[name] for name in ("cache_read", "cache_write_5m", "cache_write_1h") if told[name]}
    wanted = ("batch", "service_tier", "speed", "inference_geo", "billing")
    context = {name: told[name] for name in wanted if told[name]}
    with _catalog_faults():
        item = PriceItem.model_validate(
            {"provider": provider, "model": model, "at": _moment(at), "context": context, "usage": usage}
        )
        answer = _report(data_dir, config, overlay).explain(item)
    if as_json:
        print_json(answer)
    else:
        _print_price(answer)
    raise typer.Exit(1 if answer["priced"]["list_cost_usd"] is None else 0)


@catalog_app.command("resolve")
def resolve_id(
    model: Annotated[str, typer.Argument(help="Model id as served.")],
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", "-a", help="OTel KEY=VALUE; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print which provider, model and access an id stands for, and on what evidence."""
    from catalog.api_shapes import ResolveItem

    attributes = dict(_pair(text) for text in attribute or [])
    with _catalog_faults():
        answer = _report(None, None, None).resolve(ResolveItem(model=model, attributes=attributes))
    if as_json:
        print_json(answer)
        return
    for name, value in answer.items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:>12}  {', '.join(shown) if isinstance(shown, list) else shown or '-'}")


@catalog_app.command("diff")
def diff(
    before: Annotated[str, typer.Option(help="source, installed or ours.")] = "source",
    after: Annotated[str, typer.Option(help="source, installed or ours.")] = "ours",
    litellm: Annotated[
        Path | None, typer.Option(help="LiteLLM's price JSON, compared with `before` instead.")
    ] = None,
    at: At = None,
    data_dir: DataDir = None,
    config: Config = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Print the prices on which two tables differ: the source alone, a newer one, or what is in use."""
    with _catalog_faults():
        rows = _report(data_dir, config, overlay).diff(before, after, at=_moment(at), litellm=litellm)
    _print_changes(rows, as_json=as_json)


@catalog_app.command("update")
def update(
    data_dir: DataDir = None, config: Config = None, overlay: Overlay = None, as_json: Json = False
) -> None:
    """Take the prices of the installed genai-prices. Charges already written stay as they are."""
    with _catalog_faults():
        done = _report(data_dir, config, overlay).update(at=_moment(None))
    if as_json:
        print_json(done)
        return
    _print_changes(done["changes"], as_json=False)
    if done["before"] == done["after"]:
        typer.echo(f"{done['after']} is in use already; to get newer prices upgrade the package genai-prices")
        return
    typer.echo(f"{done['after']} is in use instead of {done['before']} from the next start on")


@catalog_app.command("status")
def status(
    data_dir: DataDir = None, config: Config = None, overlay: Overlay = None, as_json: Json = False
) -> None:
    """Print which prices are in use, and check every file of the catalogue and of your own."""
    with _catalog_faults():
        told = _report(data_dir, config, overlay).status()
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        typer.echo(f"{name.replace('_', ' '):>16}  {value}")
    if told["adopted"] != told["installed"]:
        typer.echo("a different version is installed: `tollbook catalog update` takes it")


@contextlib.contextmanager
def _catalog_faults() -> Iterator[None]:
    """Say the catalogue's faults, and questions that are not valid, the way every command does."""
    from pydantic import ValidationError

    from catalog.errors import CatalogError

    try:
        yield
    except CatalogError as error:
        raise TollbookError(str(error)) from error
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise TollbookError("\n".join(lines)) from error


def _report(data_dir: Path | None, config: Path | None, overlay: Path | None) -> CatalogReport:
    from catalog.report import CatalogReport
    from tollbook.settings_load import load

    settings = load({"server.data_dir": data_dir, "catalog.overlay": overlay}, config=config).settings
    return CatalogReport(
        settings.server.data_dir / "catalog",
        overlay=settings.catalog.overlay,
        accounts_file=settings.catalog.accounts,
    )


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("must be RFC 3339 or a date", param_hint="--at") from None
    return told.replace(tzinfo=UTC) if told.tzinfo is None else told


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--attribute")
    return key, value


def _print_price(answer: dict[str, Any]) -> None:
    resolved, priced = answer["resolved"], answer["priced"]
    typer.echo(
        f"{resolved['served_model']}: {resolved['model'] or 'unknown model'}, {resolved['access']} access"
    )
    for line in priced["lines"]:
        typer.echo(
            f"  {line['part']:<16} {line['units']:>12} x {line['usd_per_million']:>10} = {line['usd']} USD"
        )
    if priced["list_cost_usd"] is None:
        near = f"; nearest priced ids: {', '.join(answer['near'])}" if answer["near"] else ""
        typer.echo(f"  no price: {priced['reason']}{near}")
        return
    typer.echo(
        f"  list {priced['list_cost_usd']} USD, billed {priced['billed_cost_usd']} ({priced['status']})"
    )
    estimate = ", an estimate by another provider's list" if priced["estimated"] else ""
    typer.echo(f"  price row {priced['price_id']} (over {answer['price_source']}){estimate}")


def _print_changes(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"differences": rows})
        return
    if not rows:
        typer.echo("no price differs")
        return
    from tollbook.report import print_table

    columns = ["model", "mode", "part", "before", "after"]
    told = [[row[name] for name in columns] for row in rows]
    print_table({"columns": columns, "rows": told, "truncated": False})
