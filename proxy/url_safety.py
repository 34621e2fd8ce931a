"""Which addresses operators may send calls to.

A base URL comes from a person's file or API call, and what is sent there carries keys. So: http or https
only, no credentials in the URL, no address of a cloud's metadata service ever, private networks only
where they are allowed (local models), plain http only to private hosts. A name is judged twice: as
written, and by every address it resolves to at the moment of connecting (names can change their mind).

Errors: `UnsafeUrl`, with a code and a sentence that is safe to show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

# Services that hand out credentials of the machine to whoever asks from it.
METADATA_ADDRESSES: Final = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, Oracle and most others
            "169.254.169.253",
            "169.254.170.2",  # AWS ECS
            "169.254.170.23",  # AWS EKS
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure's host
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",  # Google
        ),
    )
)
METADATA_HOSTS: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_PRIVATE_SUFFIXES: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".localdomain", ".svc")
_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")
_EMBEDDING: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")))
"""Whose last 32 bits are an IPv4 address: NAT64, also of one's own network, and translated addresses."""
_COMPATIBLE: Final = IPv6Network("::/96")
_NOWHERE: Final = (
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of one's own network
    IPv6Network("3fff::/20"),  # documentation
    IPv6Network("5f00::/16"),  # segments of one's own network
    IPv6Network("fec0::/10"),  # site-local, as it was
    IPv4Network("192.88.99.0/24"),  # relays of 6to4, as they were
)
"""Routed nowhere on the Internet, which `ipaddress` of Python 3.11 does not know."""


class UnsafeUrl(ValueError):
    """`code`: invalid_url, scheme, userinfo, metadata, private_address, plain_http or unresolved."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A base URL that may be called, if what its host resolves to may (`check_addresses`)."""

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None  # of a host written as an address, in whatever notation


def checked_url(url: str, *, allow_private: bool) -> CheckedUrl:
    """The URL, taken apart; UnsafeUrl where it must not be called, whatever its host resolves to."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise UnsafeUrl("invalid_url", "the URL cannot be read") from None
    if port == 0 or _CONTROL.search(url.strip()):
        raise UnsafeUrl("invalid_url", "a base URL has no blanks, no control characters and no port 0")
    if parts.scheme not in ("http", "https"):
        code = "scheme" if parts.scheme and parts.netloc + parts.path else "invalid_url"
        raise UnsafeUrl(code, "a base URL begins with https:// or http://")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise UnsafeUrl("userinfo", "a base URL has no user, password or backslash; keys go into the vault")
    if parts.query or parts.fragment:
        raise UnsafeUrl("invalid_url", "a base URL has no query and no fragment")
    host = (parts.hostname or "").rstrip(".")
    address = address_of(host)
    if address is None and not _HOST.fullmatch(host):
        raise UnsafeUrl("invalid_url", "the URL's host is not a name or an address")
    checked = CheckedUrl(url.strip(), parts.scheme, host, port or _port(parts.scheme), address)
    if host in METADATA_HOSTS:
        raise UnsafeUrl("metadata", "metadata services of clouds are never called")
    if address is not None:
        check_addresses(checked, [address], allow_private=allow_private)
    elif not allow_private:
        _check_public_name(checked)
    return checked


def check_addresses(url: CheckedUrl, addresses: Iterable[str | Address], *, allow_private: bool) -> None:
    """UnsafeUrl unless every one of the addresses that the host resolved to may be called."""
    found = [ip_address(str(address).partition("%")[0]) for address in addresses]
    if any(is_metadata(address) for address in found):
        raise UnsafeUrl("metadata", "metadata services of clouds are never called")
    public = [is_public(address) for address in found]
    if not found and not allow_private:
        raise UnsafeUrl("unresolved", f"the name {url.host} does not resolve")
    if not all(public) and not allow_private:
        raise UnsafeUrl(
            "private_address", f"{url.host} lies in a private network; allow it where it is meant"
        )
    if any(public) and url.scheme == "http":
        raise UnsafeUrl("plain_http", f"{url.host} is public: keys travel there by https:// only")


def is_public(address: Address) -> bool:
    """Whether the address is routed on the Internet, also by what it embeds."""
    embedded = _embedded(address)
    if any(address in network for network in _NOWHERE):
        return False
    if embedded is not None:
        return is_public(embedded)
    return address.is_global and not address.is_multicast


def is_private_name(host: str) -> bool:
    """Whether a host name has no meaning on the Internet: bare, or of a private domain."""
    return "." not in host or host.endswith(_PRIVATE_SUFFIXES)


def is_metadata(address: Address) -> bool:
    embedded = _embedded(address)
    return address in METADATA_ADDRESSES or embedded in METADATA_ADDRESSES


def address_of(host: str) -> Address | None:
    """The address that a host is written as, also as C libraries read it: 2130706433, 0x7f.1, 0177.1."""
    try:
        return ip_address(host)
    except ValueError:
        return _inet_aton(host)


def _inet_aton(host: str) -> IPv4Address | None:
    parts = host.split(".")
    numbers = [_number(part) for part in parts]
    if len(parts) > 4 or None in numbers:
        return None
    *leading, last = [number for number in numbers if number is not None]
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        return None
    return IPv4Address(sum(number << 8 * (3 - place) for place, number in enumerate(leading)) + last)


def _number(part: str) -> int | None:
    if re.fullmatch(r"0x[0-9a-f]*", part, re.IGNORECASE):
        return int(part[2:] or "0", 16)
    if re.fullmatch(r"0[0-7]*", part):
        return int(part, 8)
    return int(part) if re.fullmatch(r"[0-9]{1,10}", part) else None


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv6 one: mapped, translated, compatible, NAT64, 6to4, Teredo."""
    if isinstance(address, IPv4Address):
        return None
    if any(address in each for each in _EMBEDDING) or (address in _COMPATIBLE and int(address) > 0xFFFF):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def _check_public_name(url: CheckedUrl) -> None:
    if is_private_name(url.host):
        raise UnsafeUrl("private_address", f"{url.host} is a private name; allow it where it is meant")
    if url.scheme == "http":
        raise UnsafeUrl("plain_http", f"{url.host} is public: keys travel there by https:// only")


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
