"""The receivers and the journal alone, to measure them without a ledger: what is durable is released at once.

`python -m bench.receiver --data-dir DIR` prints one JSON line with its addresses and serves until it is told
to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
from pathlib import Path

import uvicorn
import uvloop

from ingest.grpc_receiver import start_grpc
from ingest.http_receiver import OtlpHttp
from ingest.intake import Intake
from ingest.journal import Journal
from ingest.limits import Limits


async def serve(directory: Path) -> None:
    """Receive until SIGTERM or SIGINT."""
    journal = Journal.open(directory / "journal")
    journal.on_durable = journal.release
    intake = Intake(journal, Limits())
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(
        uvicorn.Config(
            OtlpHttp(intake), http="httptools", lifespan="off", log_level="warning", access_log=False
        )
    )
    grpc_server, grpc_port = await start_grpc(intake, host="127.0.0.1", port=0)
    print(
        json.dumps(
            {"http": f"http://127.0.0.1:{listener.getsockname()[1]}", "grpc": f"127.0.0.1:{grpc_port}"}
        ),
        flush=True,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])
    await grpc_server.stop(grace=1)
    await journal.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    uvloop.run(serve(parser.parse_args().data_dir))


if __name__ == "__main__":
    main()
