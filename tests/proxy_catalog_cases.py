"""The peer's cases about names and money: whose model it is, what it is called, what a call of it costs.

Each function is asked with a case's `given` (see `tests/proxy_cases.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl

from catalog.catalog import Catalog
from catalog.compile import compile_prices
from catalog.errors import PriceFileError
from catalog.overlay import lay
from catalog.price_files import load_layer
from catalog.provider_book import Book, load_book
from catalog.quote import Quotes
from catalog.resolve import Evidence, Resolver
from proxy.catalogue import Catalogue
from proxy.choice import Chooser
from proxy.doors import DoorSettings
from proxy.exchange import CallHead, Exchange
from proxy.models import qualified
from proxy.refusal import Refused
from proxy.vault import Entry, Vault
from proxy.wire import operation_of, said

__all__ = ["CATALOG_ASKS", "same_cost", "same_lab"]

KEY_ENV = "A_KEY_OF_THE_CASES"
_ACCESS = {"api_key": "payg", "subscription": "subscription"}
_AT = "2026-09-01T12:00:00+00:00"


@cache
def _book() -> Book:
    return load_book()


@cache
def _resolver() -> Resolver:
    return Resolver(_book())


@cache
def _catalogue() -> Catalogue:
    return Catalogue(Quotes.load())


def _provider_of(given: Any) -> str | None:
    return _resolver().resolve(Evidence(request_model=given["model"])).provider


# What a call costs


def _sheet(price: dict[str, str | None]) -> str:
    return "".join(f"{part} = {json.dumps(usd)}\n" for part, usd in price.items() if usd is not None)


def _price_file(given: Any) -> str:
    head = '[[price]]\nprice_list = "openai"\nsource = "a case"\nchecked = 2026-11-22\n'
    windows = [
        f"[[price.row.windows]]\nhours = {json.dumps(each['hours'])}\n"
        + _sheet({part: usd for part, usd in each.items() if part != "hours"})
        for each in given.get("windows", ())
    ]
    return f"{head}ids = [{json.dumps(given['model'])}]\n[[price.row]]\n" + "".join(
        [_sheet(given["price"]), *windows]
    )


_compiled = cache(compile_prices)


def _catalog(given: Any) -> Catalog:
    """A catalogue with the case's price over all others. Raises PriceFileError."""
    if not given["price"] or not given["model"]:
        return Catalog(_compiled(), _book())
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay.toml"
        overlay.write_text(_price_file(given))
        return Catalog(lay(_compiled(), [load_layer("case", overlay)]), _book())


def _cost(given: Any) -> str | None:
    """What is billed; None where it is unknown, `refused` where the price itself cannot be."""
    try:
        catalog = _catalog(given)
    except PriceFileError:
        return "refused"
    usage, model = given["usage"], given["model"]
    call = {
        "provider": "openai",
        "served_model": f"openai/{model}" if model else None,
        "model": None,
        "resolution": "resolved" if model else "unresolved",
        "access": given["access"],
        "plan_id": None,
        "started_at": datetime.fromisoformat(given.get("at", _AT)).astimezone(UTC),
        "input_tokens": usage["input"],
        "output_tokens": usage["output"],
        "cache_read_tokens": usage.get("cache_read", 0),
        "cache_write_tokens": usage.get("cache_write", 0),
        **dict.fromkeys(("cache_write_1h_tokens", "audio_input_tokens", "audio_output_tokens")),
        "service_tier": None,
        "speed": None,
        "batch": False,
        "status": "ok",
    }
    [row] = catalog.rate(pl.DataFrame([call], infer_schema_length=None)).to_dicts()
    billed = row["billed_cost_usd"]
    return None if billed is None else str(billed)


def same_cost(ours: str | None, peer: str | None) -> bool:
    """Equal to what a float can say: the peer counts in floats."""
    if ours in (None, "refused") or peer is None:
        return ours == peer or (ours == "refused" and peer is None)
    apart = Decimal(ours or 0) - Decimal(peer)
    return apart.is_finite() and abs(apart) < Decimal("1e-15")


# What models are called


def _listed_as(given: Any) -> str:
    return qualified(given["provider"], given["model"])


def _asked_of(given: Any) -> Any:
    provider, rest = _catalogue().split(given["model"])
    named = provider.id if provider is not None else _provider_of(given)
    return {"provider": named, "model": rest} if named else None


def _leads_to(given: Any) -> Any:
    """Where a call goes by the keys that are held for what is listed."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {KEY_ENV: "key"}):
        vault = Vault(Path(folder))
        for each in given["listed"]:
            if each["access"]:
                vault.add(Entry(each["provider"], _ACCESS[each["access"]], env=KEY_ENV))
        try:
            target = Chooser(_catalogue(), vault, DoorSettings()).choose(_exchange(given["model"]))
        except Refused:
            return None
    return {"provider": target.provider, "model": target.model}


def _exchange(model: str) -> Exchange:
    path, request = "/v1/chat/completions", {"model": model, "messages": []}
    operation = operation_of(path)
    assert operation is not None
    head = CallHead(operation, path, b"", [])
    return Exchange(head, said(operation, request), json.dumps(request).encode(), request)


def _lab_of(given: Any) -> Any:
    """Whose model is behind a provider's id, and its own name."""
    told = Evidence(request_model=given["model"], provider_name=given["provider"])
    found = _resolver().resolve(told)
    lab, _, name = (found.model or "").partition("/")
    served = (found.served_model or "").removeprefix(f"{found.provider}/")
    return {"lab": lab or None, "model": name or served}


def same_lab(ours: Any, peer: Any) -> bool:
    """The peer names a lab by one of those who sell its models at first hand; a dot is a dash."""
    lab = _book().labs.get(ours["lab"] or "")
    sellers = {*(lab.providers if lab else ()), ours["lab"]}
    return peer["lab"] in sellers and ours["model"].replace(".", "-") == peer["model"].replace(".", "-")


def _behind_gateway(given: Any) -> str | None:
    provider, rest = _catalogue().split(given["model"])
    return None if provider is None else rest


CATALOG_ASKS: dict[str, Callable[[Any], Any]] = {
    "provider_of": _provider_of,
    "cost": _cost,
    "listed_as": _listed_as,
    "asked_of": _asked_of,
    "leads_to": _leads_to,
    "lab_of": _lab_of,
    "behind_gateway": _behind_gateway,
}
