"""The price table in use: the compiled source, our shipped prices over it, the operator's over both."""

from __future__ import annotations

from pathlib import Path

from catalog.compile import load_prices
from catalog.overlay import lay
from catalog.price_files import SHIPPED, load_layer
from catalog.provider_book import Book
from catalog.table import PriceTable

__all__ = ["lay_over", "load_table"]


def load_table(cache_dir: Path | None, book: Book, *, overlay: Path | None = None) -> PriceTable:
    """Load the prices that calls are rated by.

    `overlay` is the operator's file, or a folder of files. Raises PriceFileError with file and line of
    everything wrong in it, PriceDataError where the source cannot be compiled.
    """
    return lay_over(load_prices(cache_dir), book, overlay=overlay)


def lay_over(base: PriceTable, book: Book, *, overlay: Path | None = None) -> PriceTable:
    """Lay the shipped prices, then the operator's, over a compiled table."""
    layers = [load_layer("shipped", SHIPPED)]
    if overlay is not None:
        layers.append(load_layer("operator", overlay))
    return lay(base, layers, lists=frozenset(book.providers))
