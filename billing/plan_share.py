"""Splits an invoice so that the parts sum to it, to the last cent.

Largest remainder, in whole numbers: every part gets what its share is worth rounded down, and the cents
that are left go to the largest remainders. Equal remainders are settled by name, so that the same figures
always give the same split.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

__all__ = ["CENT", "allocate"]

CENT = Decimal("0.01")
Name = str | None


def allocate(amount: Decimal, shares: Mapping[Name, Decimal]) -> dict[Name, Decimal]:
    """Split `amount` (0 or more) by shares (0 or more, not all 0) into parts that sum to it exactly.

    Parts are whole cents, or whole units of the amount's last decimal place where that is finer.
    """
    unit = min(CENT, Decimal(1).scaleb(int(amount.normalize().as_tuple().exponent)))
    scale = min(int(share.as_tuple().exponent) for share in shares.values())
    weights = {name: int(share.scaleb(-scale)) for name, share in shares.items()}
    whole, total = int(amount / unit), sum(weights.values())
    parts = {name: whole * weight // total for name, weight in weights.items()}
    order = sorted(weights, key=lambda name: (-(whole * weights[name] % total), name is None, name or ""))
    for name in order[: whole - sum(parts.values())]:
        parts[name] += 1
    return {name: part * unit for name, part in parts.items()}
