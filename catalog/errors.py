"""Faults of the catalogue: one tree, so that a caller can tell bad data from a bad call.

    CatalogError
    ├── ProviderDataError   a reviewed TOML file is wrong: names file, key and what is allowed
    ├── PriceFileError      a price file (shipped or the operator's) is wrong: names file and line
    ├── AccountFileError    the operator's accounts file is wrong: names file and line
    ├── PriceDataError      the price source could not be compiled or its cache not written
    └── EndpointError       a live call's URL cannot be made: names what is not set

Data that is merely unknown (a model without a price) is never an error: it is NULL with a reason.
"""

from __future__ import annotations

__all__ = [
    "AccountFileError",
    "CatalogError",
    "EndpointError",
    "PriceDataError",
    "PriceFileError",
    "ProviderDataError",
]


class CatalogError(Exception):
    """Base of every fault raised by this package."""

    code = "catalog_error"


class ProviderDataError(CatalogError):
    """A reviewed data file does not validate; the message lists every place and what to do there."""

    code = "catalog_data_invalid"


class PriceFileError(CatalogError):
    """A price file does not validate or names what is not there; the message lists every file and line."""

    code = "catalog_price_file_invalid"


class AccountFileError(CatalogError):
    """An accounts file does not validate or names what is not there; the message lists every place."""

    code = "catalog_account_file_invalid"


class PriceDataError(CatalogError):
    """Prices could not be compiled from the installed source, or the compiled cache not written."""

    code = "catalog_prices_unavailable"


class EndpointError(CatalogError):
    """The URL of a live call cannot be made; the message names what is not set or not allowed in it."""

    code = "catalog_endpoint_incomplete"
