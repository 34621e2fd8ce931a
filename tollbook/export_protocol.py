"""Small exports of telemetry answered where their bytes arrive, as budget requests are.

An agent that exports span by span sends thousands of small requests a second, of which the journal is the
least cost. Here a whole and plain one is cut out of what arrived. What is large, comes in chunks or would be
refused by its head goes to uvicorn and the same code as an ASGI application; nothing is refused here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import ClassVar, Final

from ingest.http_receiver import Answer, Export, OtlpHttp, export_of
from tollbook.budget_protocol import REMEMBERED_HEAD_BYTES, REMEMBERED_HEADS, BudgetProtocol
from tollbook.plain_head import plain_head

__all__ = ["ExportProtocol", "export_protocol"]

log = logging.getLogger("tollbook.api")

MAX_EXPORT_BYTES: Final = 64 << 10
"""Larger bodies come in many reads, which uvicorn gathers."""

_REQUEST: Final = re.compile(rb"POST ((?:/api/public/otel)?/v1/(?:traces|logs|metrics)) HTTP/1\.1\r\n")


class ExportProtocol(BudgetProtocol):
    """One connection; `exports` are the heads that were read before, None for those that are not plain."""

    otlp: ClassVar[OtlpHttp]
    exports: ClassVar[dict[bytes, Export | None]]

    def _take(self, data: bytes) -> None:
        found = None if self.is_busy else _REQUEST.match(data)
        end = -1 if found is None else data.find(b"\r\n\r\n", found.end() - 2)
        export = None if found is None or end < 0 else self._export(data[:end], found)
        if export is None:
            super()._take(data)
            return
        body, whole = end + 4, end + 4 + export.length
        if len(data) < whole:
            self._early = data
            return
        self._early = data[whole:]
        self._begin(export, data[body:whole])

    def _begin(self, export: Export, body: bytes) -> None:
        told = self.otlp.begin(export, body)
        if told is None:
            self._answer_later(self._acknowledged(export, body))
        elif isinstance(told, Answer):
            self._reply(told)
            self._go_on()
        else:
            self._answering = True
            told.add_done_callback(lambda taken: self._ended(export, len(body), taken))

    def _ended(self, export: Export, size: int, taken: asyncio.Future[int]) -> None:
        try:
            answer = self.otlp.ended(export, size, taken)
        except Exception:
            log.exception("an export could not be taken")
            answer = Answer(500, [], b"")
        self._finish(answer)

    def _export(self, head: bytes, found: re.Match[bytes]) -> Export | None:
        """What a head announces; None where it is for the long way."""
        try:
            return self.exports[head]
        except KeyError:
            export = self._read(found[1].decode("ascii"), head[found.end() :])
        if len(head) <= REMEMBERED_HEAD_BYTES:
            if len(self.exports) >= REMEMBERED_HEADS:
                self.exports.clear()
            self.exports[head] = export
        return export

    def _read(self, path: str, headers: bytes) -> Export | None:
        plain = plain_head(headers, self.guard, path=path, scheme=self.scheme or "http")
        return None if plain is None or plain[1] > MAX_EXPORT_BYTES else export_of(path, plain[0])

    async def _acknowledged(self, export: Export, body: bytes) -> Answer:
        try:
            return await self.otlp.answer(export, body)
        except Exception:
            log.exception("an export could not be taken")
            return Answer(500, [], b"")


def export_protocol(budgets: type[BudgetProtocol], otlp: OtlpHttp) -> type[BudgetProtocol]:
    """The protocol of one server that takes exports too, for `uvicorn.Config(http=...)`."""
    return type("ExportProtocol", (ExportProtocol, budgets), {"otlp": otlp, "exports": {}})
