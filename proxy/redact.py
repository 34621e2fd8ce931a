"""Secrets out of texts: logs, errors, whatever may be shown or kept.

A text shaped like a key, a value named like a credential, what follows `Bearer`, what stands before the
`@` of a URL: patterns made from `redact.toml`. Only the secret goes, so that the rest of a message still
helps. To redact twice changes nothing more.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from .url_safety import address_of, is_private_name, is_public

REDACTED: Final = "[REDACTED]"
HIDDEN_URL: Final = "[internal address]"

_Rule = tuple[re.Pattern[str], "str | Callable[[re.Match[str]], str]"]

_NEW: Final = r"(?!\[REDACTED)"  # not what an earlier rule left
_QUOTED: Final = (
    r"(?P<q>\\*[\"'])(?!\[REDACTED).*?(?:(?<!\\)(?P=q)|\Z)"  # quotes may be escaped, many times over
)
_BARE: Final = r"[^\s\"'\\,;&}<>]+"
_WORD_BEGINS: Final = r"(?<![A-Za-z0-9])"
_KEY: Final = r"[A-Za-z0-9_\-.~+/=]"
# What prose says after "bearer".
_PROSE: Final = (
    r"(?!(?:tokens?|auth\w*|scheme|header|credentials?|keys?|realm|format|is|was|or|and|must|not)\b)"
)
_FIXED: Final[list[_Rule]] = [
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
        REDACTED,
    ),
    (
        re.compile(rf"\bBearer\s+{_PROSE}(?:{_QUOTED}|{_NEW}[^\s\"'\\,<>]{{4,}})", re.I | re.S),
        f"Bearer {REDACTED}",
    ),
    (re.compile(r"\bBasic\s+(?=[a-z]*[0-9A-Z+/=])(?![A-Z]?[a-z]+\b)[A-Za-z0-9+/=]{8,}"), f"Basic {REDACTED}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?!\[REDACTED)[^\s/\"'<>@]+@", re.I), rf"\1{REDACTED}@"),
    (re.compile(_WORD_BEGINS + r"eyJ[\w-]{10,}(?:\.[\w-]*){0,2}"), REDACTED),
    (re.compile(_WORD_BEGINS + r"tid=[^\s\"'\[]{16,}"), REDACTED),  # GitHub Copilot's session
]


def redact(text: str) -> str:
    """The text with every secret replaced by `[REDACTED]`."""
    for pattern, replacement in _rules():
        text = pattern.sub(replacement, text)
    return text


def without_internal_urls(text: str) -> str:
    """The text with every URL replaced that tells what our side looks like: private or bare hosts."""
    return _URL.sub(lambda found: HIDDEN_URL if _is_internal(found["host"]) else found[0], text)


_URL: Final = re.compile(
    r"\b(?:https?|wss?)://(?:[^\s/\"'<>@]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\s/:\"'<>?#,)]+)[^\s\"'<>]*",
    re.IGNORECASE,
)


def _is_internal(host: str) -> bool:
    bare = host.strip("[].").lower()
    address = address_of(bare)
    return is_private_name(bare) if address is None else not is_public(address)


@cache
def prefixes() -> tuple[str, ...]:
    """Every prefix that makes a text a key."""
    return tuple(prefix for group in _data()["prefixes"] for prefix in group["begins"])


@cache
def _rules() -> list[_Rule]:
    data = _data()
    names = {kind: _alternatives(data["names"][kind]) for kind in ("always", "lines", "quoted")}
    scheme = r"(?:(?:Bearer|Basic|Token|Digest)\s+)?"
    return [
        (
            _pattern(rf"(?P<name>{names['lines']}\\*[\"']?\s*[:=]\s*)(?:{_QUOTED}|{_NEW}[^\r\n\"']+)"),
            _keep_name,
        ),
        (
            _pattern(rf"(?P<name>{names['always']}\\*[\"']?\s*[:=]\s*)(?:{_QUOTED}|{_NEW}{scheme}{_BARE})"),
            _keep_name,
        ),
        (_pattern(rf"(?P<name>\\*[\"']{names['quoted']}\\*[\"']\s*:\s*){_QUOTED}"), _keep_name),
        (_pattern(rf"(?P<name>(?<![-_]){names['quoted']}=){_NEW}(?P<q>){_BARE}"), _keep_name),
        *_FIXED,
        *(
            (_prefixed(group["begins"], group["min"], group.get("digit", False)), REDACTED)
            for group in data["prefixes"]
        ),
    ]


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def _alternatives(names: Iterable[str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return f"{_WORD_BEGINS}(?:{'|'.join(name.replace('-', '[-_]?') for name in longest_first)})"


def _keep_name(found: re.Match[str]) -> str:
    quote = found["q"] or ""
    return f"{found['name']}{quote}{REDACTED}{quote}"


def _prefixed(begins: Iterable[str], shortest: int, digit: bool) -> re.Pattern[str]:
    any_of = "|".join(re.escape(prefix) for prefix in begins)
    ahead = rf"(?={_KEY}*[0-9])" if digit else ""
    return re.compile(rf"{_WORD_BEGINS}(?:{any_of}){ahead}{_KEY}{{{shortest - 1},}}[A-Za-z0-9_\-=]")


def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("redact.toml").read_text())
