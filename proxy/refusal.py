"""A call that is not made, or cannot be read: said in the caller's dialect, with what to do."""

from __future__ import annotations

from proxy.failure import FailureKind, failure

__all__ = ["Refused"]


class Refused(Exception):
    """Nothing is sent; `failure` is what the caller is told."""

    def __init__(
        self, kind: FailureKind, message: str, *, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.failure = failure(kind, message, code=code, retry_after_s=retry_after_s)
