"""`tollbook keys provider`: the keys that open providers' doors for callers who bring none of their own.

A key is read from stdin or asked for without showing it, never taken from the command line, where other
users and the shell's history would see it. It is sealed before it is written and never printed again.
"""

# ruff: noqa: PLC0415  # heavy imports wait until a command needs them

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tollbook.cli_common import Json, print_json
from tollbook.errors import TollbookError

if TYPE_CHECKING:
    from catalog.provider_book import Book
    from catalog.provider_facts import Provider
    from proxy.secret import Secret
    from proxy.vault import Vault

keys_app = typer.Typer(name="keys", help="Keys.", no_args_is_help=True)
provider_app = typer.Typer(name="provider", help="Keys to providers.", no_args_is_help=True)
keys_app.add_typer(provider_app)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the journal, ledger and usage.duckdb.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file, instead of tollbook.toml.")]
Access = Annotated[
    str | None, typer.Option(help="payg, subscription, ...; else as the key or provider says.")
]
Account = Annotated[str, typer.Option(help="A name of yours, where there are several.")]


class KeyProblem(TollbookError):
    """A key that cannot be kept."""


@provider_app.command("add")
def add(
    provider: Annotated[str, typer.Argument(help="Provider id or alias, e.g. zai-coding-plan.")],
    env: Annotated[
        str | None, typer.Option(help="Environment variable of the server that holds it; nothing is stored.")
    ] = None,
    access: Access = None,
    account: Account = "default",
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Keep a key, read from stdin, sealed; it serves at once, also in a running server."""
    from catalog.provider_book import load_book
    from proxy.vault import Entry

    with _faults():
        book = load_book()
        facts = _provider(book, provider)
        key = None if env else _read_key()
        told, kind = _access(book, facts, key, access)
        entry = Entry(
            *(facts.id, told, account),
            kind=kind,
            env=env,
            added_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _vault(data_dir, config).add(entry, key)
    where = f"read from {env}" if env else "sealed"
    typer.echo(f"{facts.id} ({told}, account {account}): {where}")


@provider_app.command("ls")
def list_keys(data_dir: DataDir = None, config: Config = None, as_json: Json = False) -> None:
    """Print what there is; never a key."""
    with _faults():
        entries = _vault(data_dir, config).entries()
    rows = [
        {
            "provider": entry.provider,
            "access": entry.access,
            "account": entry.account,
            "kind": entry.kind,
            "from": f"env:{entry.env}" if entry.env else "vault",
            "set": bool(os.environ.get(entry.env)) if entry.env else True,
            "added_at": entry.added_at,
        }
        for entry in entries
    ]
    if as_json:
        return print_json(rows)
    for row in rows:
        typer.echo(
            "  ".join(str(row[name] or "-") for name in ("provider", "access", "account", "from", "kind"))
        )
    if not rows:
        typer.echo("no keys; add one with `tollbook keys provider add PROVIDER`")
    return None


@provider_app.command("rm")
def remove(
    provider: Annotated[str, typer.Argument(help="Provider id or alias.")],
    access: Access = None,
    account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Forget a provider's keys."""
    from catalog.provider_book import load_book

    with _faults():
        facts = _provider(load_book(), provider)
        gone = _vault(data_dir, config).remove(facts.id, access=access, account=account)
    typer.echo(f"{gone} removed")
    raise typer.Exit(0 if gone else 1)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    from proxy.vault import VaultError

    try:
        yield
    except VaultError as error:
        raise KeyProblem(str(error)) from None


def _vault(data_dir: Path | None, config: Path | None) -> Vault:
    from proxy.vault import Vault
    from tollbook.settings_load import load

    settings = load({"server.data_dir": data_dir}, config=config).settings
    return Vault(settings.server.data_dir / "keys")


def _provider(book: Book, name: str) -> Provider:
    from catalog.provider_book import fold_name

    found = book.names.get(fold_name(name))
    if found is None:
        raise KeyProblem(f"the catalogue knows no provider {name!r}; `tollbook catalog` lists them")
    return book.providers[found]


def _read_key() -> Secret:
    from proxy.secret import Secret

    text = typer.prompt("Key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = Secret(text.strip())
    if not key or not text.strip().isprintable() or " " in text.strip():
        raise KeyProblem("that is not a key: one line on stdin is expected")
    return key


def _access(book: Book, facts: Provider, key: Secret | None, told: str | None) -> tuple[str, str | None]:
    """What calls with the key are, and its kind; a key of another provider or access is refused."""
    from catalog.endpoints import EndpointBook
    from proxy.keys import KeyKinds, crossed, misplaced

    kinds = KeyKinds(book).of(key) if key is not None else ()
    mine = next((kind for kind in kinds if kind.provider == facts.id), None)
    doors = {endpoint.access for endpoint in EndpointBook(book).find(facts.id)}
    usual = next(iter(doors)) if len(doors) == 1 else facts.access
    access = told or (mine.access if mine and mine.access != "unknown" else usual)
    if access == "unknown":
        raise KeyProblem(f"{facts.id} takes plan keys and metered keys alike: say which with --access")
    if why := misplaced(kinds, facts.id, access):
        raise KeyProblem(f"not kept: {why}")
    if doors and all(crossed(access, door) for door in doors):
        raise KeyProblem(
            f"not kept: {facts.id} has no endpoint under {access}; which metered calls a plan covers is said "
            "in the accounts file (docs/plans.md)"
        )
    return access, kinds[0].prefix if kinds else None
