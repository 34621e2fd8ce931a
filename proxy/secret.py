"""The type of every credential that passes through: it shows itself to nobody who does not ask by name."""

from __future__ import annotations

from hmac import compare_digest

__all__ = ["Secret"]


class Secret:
    """A credential. Its text in logs, errors and tracebacks is `***`; `reveal` gives the value."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The credential itself, for the header that shows it to its provider and for nothing else."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)
