"""The catalogue's version: one hash over everything that decides an answer."""

from __future__ import annotations

from hashlib import sha256

from catalog.plan_book import PlanBook
from catalog.provider_book import Book
from catalog.table import PriceTable

__all__ = ["catalog_version"]


def catalog_version(table: PriceTable, book: Book, plans: PlanBook) -> str:
    """Give the SHA-256 over the compiled table, the reviewed data and the operator's accounts: one version,
    one set of answers.
    """
    return sha256(f"{table.sha256}\n{book.sha256}\n{plans.sha256}\n".encode()).hexdigest()
