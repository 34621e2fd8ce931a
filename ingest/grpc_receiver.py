"""OTLP over gRPC: the three standard services, on raw bytes.

The messages are not deserialised by gRPC (the intake checks them, within its limits, and stores the bytes)
and the answer is an empty Export*ServiceResponse, which is no bytes at all. A bad request is
INVALID_ARGUMENT, overload is RESOURCE_EXHAUSTED and a failing disk UNAVAILABLE, both with a RetryInfo that
the OpenTelemetry exporters obey.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # children are started by exec: nothing to hand over
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")  # its threads only hand calls on

import grpc
import grpc.aio

from .intake import Intake, Reason, Refused, Transport
from .otlp import SHAPES, Encoding, Signal
from .rpc_status import Code, status_proto

_Export = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]

_FEW: Final = 2
_GATHER_S: Final = 0.002

_CODES: Final = {
    Reason.NOT_OTLP: (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID_ARGUMENT),
    Reason.OVERLOAD: (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
    Reason.JOURNAL: (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE),
}


async def start_grpc(intake: Intake, *, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A running server for OTLP/gRPC on `host`:`port` (0: any free port), and the port it is bound to.

    OSError when the address cannot be had.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", intake.limits.max_body_bytes),
            ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share
        ],
        maximum_concurrent_rpcs=intake.limits.max_concurrent_rpcs,
    )
    crowd = Crowd()
    server.add_generic_rpc_handlers(tuple(_service(intake, signal, crowd) for signal in Signal))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen for OTLP/gRPC on {address}") from error
    await server.start()
    return server, bound


class Crowd:
    """How many calls come together. grpcio brings them in one by one, and each would wake the journal's
    writer: while they are many, those of two milliseconds are one group. With 32 under way a call then costs
    a quarter less CPU and is answered sooner, not later; callers who are few wait for nothing.
    """

    def __init__(self) -> None:
        self._under_way = self._most = self._most_before = 0

    def begin(self) -> float:
        """One more is here; how many seconds its record may wait for others."""
        self._under_way += 1
        self._most = max(self._most, self._under_way)
        return _GATHER_S if max(self._most, self._most_before) > _FEW else 0.0

    def end(self) -> None:
        """One less."""
        self._under_way -= 1
        if not self._under_way:
            self._most_before, self._most = self._most, 0


def _service(intake: Intake, signal: Signal, crowd: Crowd) -> Any:
    handler = grpc.unary_unary_rpc_method_handler(_export(intake, signal, crowd))
    return grpc.method_handlers_generic_handler(SHAPES[signal].grpc_service, {"Export": handler})


def _export(intake: Intake, signal: Signal, crowd: Crowd) -> _Export:
    """The Export method of one signal's service."""
    counts = intake.counts
    key = signal, Transport.GRPC

    async def export(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        counts.requests[key] += 1
        intake.held_bytes += len(body)
        gather_s = crowd.begin()
        try:
            intake.refuse_overload()
            offset = await intake.take(signal, Encoding.PROTOBUF, body, gather_s=gather_s)
        except Refused as refused:
            counts.refused[refused.reason] += 1
            await _abort(context, refused, retry_after_s=intake.limits.retry_after_s)
        finally:
            crowd.end()
            intake.held_bytes -= len(body)
        counts.acknowledged[key] += 1
        counts.acknowledged_bytes += len(body)
        context.set_trailing_metadata((("tollbook-offset", str(offset)),))
        return b""

    return export


async def _abort(
    context: grpc.aio.ServicerContext[bytes, bytes], refused: Refused, *, retry_after_s: int
) -> NoReturn:
    """End the call with the refusal's code and a google.rpc.Status that says when to come again."""
    status, code = _CODES[refused.reason]
    retry = None if refused.reason is Reason.NOT_OTLP else retry_after_s
    details = status_proto(code, str(refused), retry_after_s=retry)
    await context.abort(status, str(refused), (("grpc-status-details-bin", details),))
    raise AssertionError("abort returned")
