"""Whose door an address is: hosts and path prefixes of the reviewed facts, compared by labels and segments.

In a host, `*.` in front stands for any subdomain and every other `*` for a part of one label
(`*-aiplatform.googleapis.com`, `bedrock-runtime.*.amazonaws.com`). The most exact name decides, then the
longest path. An address is never searched for a name: `api.openai.com.evil.example` is nobody's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from catalog.provider_book import Book
from catalog.provider_facts import Host, Provider

__all__ = ["Door", "Doors", "Server", "parse_address"]


@dataclass(frozen=True, slots=True)
class Server:
    """The address a call went to, parsed."""

    host: str
    port: int | None = None
    path: str = ""

    @property
    def is_private(self) -> bool:
        """Loopback, private network or a bare machine name: nobody's public API."""
        if self.host == "localhost" or self.host.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            return ip_address(self.host).is_private
        except ValueError:
            return "." not in self.host


@dataclass(frozen=True, slots=True)
class Door:
    """One door of the book: the facts, its owner, and what its host must look like."""

    facts: Host
    provider: Provider
    pattern: re.Pattern[str]

    def label(self, server: Server) -> dict[str, str]:
        """Give what the first `*` stands for, where the facts say what that tells (a region, say)."""
        found = self.pattern.fullmatch(server.host)
        return {self.facts.label: found[1].rstrip(".-")} if self.facts.label and found else {}


class Doors:
    """Every door, indexed by the last two labels of its host."""

    def __init__(self, book: Book) -> None:
        self._doors: dict[str, list[Door]] = {}
        for provider in book.providers.values():
            for facts in provider.hosts:
                door = Door(facts, provider, _pattern(facts.host))
                self._doors.setdefault(_domain(facts.host), []).append(door)
        for found in self._doors.values():
            found.sort(key=_exactness, reverse=True)

    def at(self, server: Server) -> Door | None:
        """Give the most exact door that an address is behind."""
        for door in self._doors.get(_domain(server.host), ()):
            if door.pattern.fullmatch(server.host) and _path_matches(door.facts.path, server.path):
                return door
        return None


def parse_address(text: str) -> Server | None:
    """Parse a URL, `host:port` or a bare host; None for what is no address."""
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    path = "/" + "/".join(segment for segment in parts.path.split("/") if segment)
    return Server(host.rstrip("."), port, path) if host else None


def _domain(host: str) -> str:
    return ".".join(host.rsplit(".", 2)[-2:])


def _pattern(host: str) -> re.Pattern[str]:
    subdomain = host.startswith("*.")
    parts = [re.escape(part) for part in (host[2:] if subdomain else host).split("*")]
    return re.compile((r"([^/]+\.)" if subdomain else "") + r"([a-z0-9-]+)".join(parts))


def _exactness(door: Door) -> tuple[bool, int, int]:
    """Order doors: names without `*` first, then the longer name, then the longer path."""
    host = door.facts.host
    return "*" not in host, len(host.replace("*", "")), door.facts.path.count("/")


def _path_matches(prefix: str, path: str) -> bool:
    """Compare path segments, never substrings; `*` in a prefix stands for any one segment."""
    wanted, given = prefix.split("/")[1:], path.split("/")[1:]
    return len(given) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted, given, strict=False))
