"""The plans and the operator's accounts, checked against the providers and against each other.

`plans/*.toml` beside the code are reviewed facts. An accounts file is the operator's: which calls are
under which plan since when, how many seats there are and how much fits into a window. Its own plans beat ours
of the same id. Every fault is told with file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from catalog.accounts import AccountRule
from catalog.errors import AccountFileError, ProviderDataError
from catalog.plan_facts import Account, AccountFile, Plan
from catalog.provider_book import DATA, Book, digest, fold_name
from catalog.toml_source import Place, TomlText, dotted, read_toml

__all__ = ["PlanBook", "load_plan_book", "load_plans"]


@dataclass(frozen=True, slots=True)
class PlanBook:
    """All plans by id, and the operator's accounts in the order of their file."""

    plans: dict[str, Plan]
    accounts: tuple[Account, ...] = ()
    rules: tuple[AccountRule, ...] = field(default=())
    """The same accounts, as access is decided by."""
    sha256: str = ""


def load_plans(data: Path = DATA) -> dict[str, Plan]:
    """Read `plans/*.toml`; raises ProviderDataError naming every wrong place."""
    problems: list[str] = []
    plans: dict[str, Plan] = {}
    for path in sorted((data / "plans").glob("*.toml")):
        plan = read_toml(path, Plan, problems)
        if plan is not None and plan.id != path.stem:
            problems.append(f"{path.name}:{_line(path, ('id',))}: id: must be the file's name, {path.stem}")
        if plan is not None:
            plans[plan.id] = plan
    if problems:
        raise ProviderDataError("\n".join(problems))
    return plans


def load_plan_book(book: Book, accounts: Path | None = None, *, data: Path = DATA) -> PlanBook:
    """Read our plans and the operator's file; raises ProviderDataError, or AccountFileError for that file."""
    plans = load_plans(data)
    files = sorted((data / "plans").glob("*.toml"))
    if accounts is None:
        return PlanBook(plans, sha256=digest(files))
    problems: list[str] = []
    told = read_toml(accounts, AccountFile, problems)
    if told is not None:
        plans |= {plan.id: plan for plan in told.plan}
        problems += [
            f"{accounts.name}:{_line(accounts, place)}: {dotted(place)}: {what}"
            for place, what in _faults(told, plans, book)
        ]
    if problems or told is None:
        raise AccountFileError("\n".join(problems))
    named = tuple(_with_known_provider(account, book) for account in told.account)
    rules = tuple(_rule(account) for account in named)
    return PlanBook(plans, named, rules, sha256=digest([*files, accounts]))


def _line(path: Path, place: Place) -> int:
    return TomlText(path.read_text(encoding="utf-8")).line(place)


def _faults(told: AccountFile, plans: dict[str, Plan], book: Book) -> Iterator[tuple[Place, str]]:
    seen: set[str] = set()
    for number, account in enumerate(told.account):
        at: tuple[str | int, ...] = ("account", number)
        if account.id in seen:
            yield (*at, "id"), "is written twice"
        seen.add(account.id)
        if account.provider and fold_name(account.provider) not in book.names:
            yield (*at, "provider"), "is not a provider of the catalogue"
        if account.plan is not None and account.plan not in plans:
            yield (*at, "plan"), f"is not a plan; there are: {', '.join(sorted(plans))}"
        elif account.plan is not None:
            yield from (((*at, *place), what) for place, what in _misfits(account, plans[account.plan]))
    for number, plan in enumerate(told.plan):
        if fold_name(plan.provider) not in book.names:
            yield ("plan", number, "provider"), "is not a provider of the catalogue"


def _misfits(account: Account, plan: Plan) -> Iterator[tuple[tuple[str | int, ...], str]]:
    tiers, windows = [tier.id for tier in plan.tiers], [window.id for window in plan.windows]
    if account.tier is not None and account.tier not in tiers:
        yield ("tier",), f"is not a tier of {plan.id}; it has: {', '.join(tiers) or 'none'}"
    for number, sized in enumerate(account.windows):
        if sized.id not in windows:
            yield (
                ("windows", number, "id"),
                f"is not a window of {plan.id}; it has: {', '.join(windows) or 'none'}",
            )


def _with_known_provider(account: Account, book: Book) -> Account:
    provider = book.names[fold_name(account.provider)] if account.provider else None
    return account.model_copy(update={"provider": provider})


def _rule(account: Account) -> AccountRule:
    return AccountRule(
        access=account.access,
        plan_id=account.plan,
        account_id=account.account_id,
        service=account.service,
        provider=account.provider,
        since=account.since,
        until=account.until,
    )
