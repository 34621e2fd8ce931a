"""What the receivers hold and accept at most: every queue and every body has a bound, and beyond it a clear
refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the receivers, in bytes and seconds.

    | limit | meaning |
    |---|---|
    | max_body_bytes | one export request, before and after decompression: 413 / RESOURCE_EXHAUSTED |
    | max_backlog_bytes | acknowledged but not yet in the ledger: 429 / RESOURCE_EXHAUSTED beyond |
    | max_held_bytes | request bodies in memory, still arriving or waiting for the disk: 429 beyond |
    | max_concurrent_rpcs | gRPC calls at the same time: RESOURCE_EXHAUSTED beyond |
    | retry_after_s | what a refused sender is told to wait |
    """

    max_body_bytes: int = 64 * MIB
    max_backlog_bytes: int = 1024 * MIB
    max_held_bytes: int = 256 * MIB
    max_concurrent_rpcs: int = 4096
    retry_after_s: int = 2
