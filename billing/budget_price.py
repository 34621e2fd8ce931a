"""What a check is about and what its call will cost, by the catalogue's prices in memory.

The catalogue is asked once: it knows the model by the name on the wire, so that a check which names what
it is about to request meets the budgets of the canonical model that its telemetry will carry. A cost that
is not known is None with a reason, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

from billing.budget import CheckRequest

__all__ = [
    "Costs",
    "Quote",
    "Quotes",
    "RememberedQuotes",
    "Resolution",
    "Tariff",
    "Tariffs",
    "price",
    "recognised",
    "settled",
]

_COVERED = frozenset({"subscription", "free", "local"})
_COSTLESS = frozenset({"free", "local"})
_ZERO = Decimal(0)
_MAX_TARIFFS = 10_000
_MINUTE = timedelta(minutes=1)


class Resolution(Protocol):
    """Who serves a model and what it is called; None is not known."""

    @property
    def provider(self) -> str | None:
        """Provider id as in `calls`."""
        ...

    @property
    def model(self) -> str | None:
        """Canonical `lab/model`."""
        ...


class Quote(Protocol):
    """A price for one call."""

    @property
    def list_cost_usd(self) -> Decimal | None:
        """US dollars at list price; None when the catalogue has no price."""
        ...

    @property
    def resolution(self) -> Resolution | None:
        """What the catalogue took the model for."""
        ...


class Quotes(Protocol):
    """The catalogue's prices. It may also offer `dearest(usage=, at=)`, the highest price of any model,
    `account_access(account_id, provider=, at=)`, what the operator says of an account, and
    `cheaper(provider, model=, at=, usage=, at_most=)`, names of models that cost less.
    """

    def quote(self, *, provider: str | None, model: str, at: datetime, usage: Mapping[str, int]) -> Quote:
        """Prices tokens (`input`, `output`) of a model as it stood at a moment."""
        ...


class Tariff(Protocol):
    """The prices of one model."""

    def quote(self, usage: Mapping[str, int]) -> Quote:
        """Prices tokens."""
        ...


class Tariffs(Protocol):
    """Where the prices of a model are looked up; it may also offer `dearest`, as `Quotes`."""

    def tariff(self, provider: str | None, *, model: str, at: datetime) -> Tariff:
        """The prices of a model as it stood at a moment."""
        ...


class RememberedQuotes:
    """Quotes for which each model is looked up once a minute: agents ask for the same few again and again."""

    def __init__(self, tariffs: Tariffs) -> None:
        self._tariffs = tariffs
        self._known: dict[tuple[str | None, str], Tariff] = {}
        self._began = self._until = datetime.min.replace(tzinfo=UTC)  # of the minute of what is known
        for name in ("dearest", "cheaper", "account_access"):
            if (method := getattr(tariffs, name, None)) is not None:
                setattr(self, name, method)

    def quote(self, *, provider: str | None, model: str, at: datetime, usage: Mapping[str, int]) -> Quote:
        """Prices tokens of a model as it stood at the beginning of a minute."""
        if not self._began <= at < self._until or len(self._known) >= _MAX_TARIFFS:
            self._known.clear()
            self._began = at.replace(second=0, microsecond=0)
            self._until = self._began + _MINUTE
        tariff = self._known.get((provider, model))
        if tariff is None:
            tariff = self._known[provider, model] = self._tariffs.tariff(
                provider, model=model, at=self._began
            )
        return tariff.quote(usage)


@dataclass(slots=True)
class Costs:
    """What the call is expected to need; None is not known.

    `unpriced` says why, when there were tokens to price; `dearest_usd` is what they cost at the dearest
    price.
    """

    billed_usd: Decimal | None = None
    list_usd: Decimal | None = None
    tokens: Decimal | None = None
    unpriced: str | None = None
    dearest_usd: Decimal | None = None


def recognised(
    request: CheckRequest, *, now: datetime, quotes: Quotes | None
) -> tuple[dict[str, str], Quote | None]:
    """The check's dimensions, with provider and model as `calls` will name them, and the quote for its
    estimate.
    """
    told = request.dimensions()
    model = request.model or told.get("model")
    if quotes is None or model is None:
        return told, None
    quote = quotes.quote(provider=told.get("provider"), model=model, at=now, usage=_usage(request))
    if request.model is not None and quote.resolution is not None:
        told |= _resolved(quote.resolution, model_told=request.scope.model is not None)
    if "account_id" in told and "access" not in told:
        told |= _by_account(told, now=now, quotes=quotes)
    return told, quote


def _by_account(told: Mapping[str, str], *, now: datetime, quotes: Quotes) -> dict[str, str]:
    """The access that the operator's accounts give the call, where the check does not tell."""
    ask = getattr(quotes, "account_access", None)
    if ask is None:
        return {}
    access: str | None = ask(told["account_id"], provider=told.get("provider"), at=now)
    return {} if access is None else {"access": access}


def _usage(request: CheckRequest) -> dict[str, int]:
    if request.estimate is None:
        return {"input": 0, "output": 0}
    return {"input": request.estimate.input_tokens or 0, "output": request.estimate.output_tokens or 0}


def _resolved(resolution: Resolution, *, model_told: bool) -> dict[str, str]:
    resolved = {} if resolution.provider is None else {"provider": resolution.provider}
    if resolution.model is not None and not model_told:
        resolved["model"] = resolution.model
    return resolved


def price(
    request: CheckRequest,
    told: Mapping[str, str],
    quote: Quote | None,
    *,
    now: datetime,
    quotes: Quotes | None,
) -> Costs:
    """The costs of a check's estimate; `told` are its dimensions."""
    estimate, access = request.estimate, told.get("access")
    needed = None if estimate is None else estimate.tokens
    tokens = None if needed is None else Decimal(needed)
    if access in _COSTLESS:
        return Costs(_ZERO, _ZERO, tokens)
    free = _ZERO if access in _COVERED else None
    if estimate is None:
        return Costs(billed_usd=free)
    if estimate.usd is not None:
        return Costs(free if free is not None else estimate.usd, estimate.usd, tokens)
    if quote is not None and quote.list_cost_usd is not None and access != "provisioned":
        return Costs(free if free is not None else quote.list_cost_usd, quote.list_cost_usd, tokens)
    dearest = _dearest(request, now=now, quotes=quotes)
    return Costs(free, None, tokens, unpriced=_why_unpriced(told), dearest_usd=dearest)


def settled(
    usage: Mapping[str, int] | None,
    *,
    tokens: int | None,
    usd: Decimal | None,
    access: str | None,
    model: str | None,
    provider: str | None,
    at: datetime,
    quotes: Quotes | None,
) -> Costs:
    """The costs of a call that was made; `usage` are its tokens in disjoint parts, `tokens` all of them."""
    told = None if tokens is None else Decimal(tokens)
    if access in _COSTLESS:
        return Costs(_ZERO, _ZERO, told)
    free = _ZERO if access in _COVERED else None
    cost = usd
    if cost is None and usage is not None and model is not None and quotes is not None:
        cost = quotes.quote(provider=provider, model=model, at=at, usage=usage).list_cost_usd
    if cost is None or access == "provisioned":
        return Costs(free, None, told, unpriced="its cost is not known")
    return Costs(free if free is not None else cost, cost, told)


def _dearest(request: CheckRequest, *, now: datetime, quotes: Quotes | None) -> Decimal | None:
    dearest = getattr(quotes, "dearest", None)
    answer: Quote | None = None if dearest is None else dearest(usage=_usage(request), at=now)
    return None if answer is None else answer.list_cost_usd


def _why_unpriced(told: Mapping[str, str]) -> str:
    if told.get("access") == "provisioned":
        return "provisioned capacity has no price per call"
    return "its model has no known price" if "model" in told else "the check names no model"
