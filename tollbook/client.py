"""A small client of a running tollbook for the command line: JSON over urllib, errors as sentences.

The standard library only, so that `tollbook report` starts at once. It never goes through a proxy: the server
is on this machine.

    ClientError
    ├── Unreachable   nothing answers at the address
    ├── Refused       the server answered with a problem: `status`, `code`, `detail`, `next_step`
    └── Late          it did not come so far in the time given
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from tollbook.errors import TollbookError

DEFAULT_URL = "http://127.0.0.1:4318"
POLL_S = 0.1


class ClientError(TollbookError):
    """Base of what goes wrong between the command line and a server."""


class Unreachable(ClientError):
    """Nothing answers at the address."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no tollbook answers at {url}; start one with `tollbook serve`, or give --url")


class Refused(ClientError):
    """The server's own problem, with what to do next."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", f"the server answered {status}"))
        self.next_step = str(problem.get("next", ""))
        super().__init__(f"{self.detail}\n{self.next_step}".strip())


class Late(ClientError):
    """It did not come so far in the time given."""


def server_url(url: str | None = None) -> str:
    """`url`, else `TOLLBOOK_URL`, else the default address."""
    return (url or os.environ.get("TOLLBOOK_URL") or DEFAULT_URL).rstrip("/")


class Client:
    """One server by its base URL."""

    def __init__(self, url: str | None = None, *, timeout_s: float = 60.0) -> None:
        self.url = server_url(url)
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, params: dict[str, str] | None = None) -> Any:
        """The JSON at `path`."""
        return json.loads(self.fetch(path, params))

    def fetch(
        self, path: str, params: dict[str, str] | None = None, *, accept: str = "application/json"
    ) -> bytes:
        """The body at `path` in the format asked for."""
        query = "?" + urllib.parse.urlencode(params) if params else ""
        return self._send("GET", path + query, accept=accept)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON body."""
        return json.loads(self._send("POST", path, body))

    def post_for(self, path: str, body: Any, *, accept: str) -> bytes:
        """The answer to a JSON body in the format asked for."""
        return self._send("POST", path, body, accept=accept)

    def put(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON body."""
        return json.loads(self._send("PUT", path, body))

    def delete(self, path: str) -> None:
        """Delete what is at `path`."""
        self._send("DELETE", path)

    def wait_ready(self, *, timeout_s: float = 60.0) -> None:
        """Return once `/readyz` is 200; Late otherwise."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.get("/readyz")
            except (Unreachable, Refused) as error:
                if time.monotonic() > deadline:
                    raise Late(f"not ready after {timeout_s:g} s: {error}") from None
            else:
                return
            time.sleep(POLL_S)

    def wait_published(self, offset: int | None = None, *, timeout_s: float = 60.0) -> int:
        """Return the published offset once it is at least `offset` (default: all acknowledged now)."""
        deadline = time.monotonic() + timeout_s
        health = self.get("/healthz")
        goal = health["acknowledged"] if offset is None else offset
        while health["published"] < goal:
            if time.monotonic() > deadline:
                raise Late(f"{goal - health['published']} bytes are not published after {timeout_s:g} s")
            time.sleep(POLL_S)
            health = self.get("/healthz")
        return int(health["published"])

    def _send(self, method: str, path: str, body: Any = None, *, accept: str = "application/json") -> bytes:
        headers = {"accept": accept}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  # http only
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, _problem(error.read())) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
            raise Unreachable(self.url) from None


def _problem(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
