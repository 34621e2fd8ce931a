"""What the commands share: options that mean the same everywhere, and how machines are answered."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from tollbook.client import Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="The server; else TOLLBOOK_URL, else http://127.0.0.1:4318.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


def server(url: str | None) -> Client:
    """The server that a command talks to."""
    return Client(url)


def split_names(text: str) -> list[str]:
    """Names written with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    typer.echo(json.dumps(document))


def print_bytes(body: bytes) -> None:
    """A body as it came, ended with a line break."""
    sys.stdout.buffer.write(body if body.endswith(b"\n") else body + b"\n")
    sys.stdout.buffer.flush()
