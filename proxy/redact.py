"""Secrets out of texts: logs, errors, whatever may be shown or kept.

A text shaped like a key, a value named like a credential, what follows `Bearer`, what stands before the
`@` of a URL: patterns made from `redact.toml`, also where it is written with escapes (`%3D`, `\\u003d`). Only
the secret goes, so that the rest of a message still helps. To redact twice changes nothing more.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from .url_safety import address_of, is_private_name, is_public

REDACTED: Final = "[REDACTED]"
HIDDEN_URL: Final = "[internal address]"

_Rule = tuple[re.Pattern[str], "str | Callable[[re.Match[str]], str]"]

_NEW: Final = r"(?!\[REDACTED)"  # not what an earlier rule left
_QUOTED: Final = (
    r"(?P<q>\\*[\"'])(?!\[REDACTED).*?(?:(?<!\\)(?P=q)|\Z)"  # quotes may be escaped, many times over
)
_BARE: Final = r"[^\s\"'\\,;&}<>]+"
# Behind an escape (`\\n`, `%3D`, `\\u003d`) a word begins too.
_WORD_BEGINS: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_SCHEMES: Final = (
    r"(?:(?:Bearer|Basic|Token|Digest|ApiKey|Api-Key|Key|OAuth|Negotiate|NTLM|AWS4-HMAC-SHA256)\s+)?"
)
_KEY: Final = r"[A-Za-z0-9_\-.~+/=]"
# What sentences say between the name of a credential and its value.
_SAYS: Final = (
    r"(?:\s+(?:provided|supplied|given|specified|used|sent|value|is|was))*(?:\s*[:=]\s*|\s+)[\"'`(\[]*"
)
# A value that is no word, though some have digits; one that can be nothing but a key; one masked in part.
_NO_WORD: Final = (
    r"(?!(?:base64|sha-?\d|md5|oauth2|utf-?8|http|v\d|gpt-|claude-|gemini-))"
    rf"(?={_KEY}*[0-9])(?={_KEY}*[A-Za-z]){_KEY}{{5,}}[A-Za-z0-9_\-=]"
)
_ONLY_A_KEY: Final = (
    r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{20,}[A-Za-z0-9_\-=]*)"
)
_STARS, _DOTS = r"[*\u2022]", r"(?:\.{3}|\u2026)"
_MASKED: Final = (
    rf"(?:(?:[A-Za-z0-9_-]{{2,}}{_STARS}{{2,}}|{_STARS}{{4,}})[\w*\u2022-]*"
    rf"|[A-Za-z0-9_-]{{2,}}{_DOTS}[A-Za-z0-9]{{2,}}[\w-]*)"
)
_MASKED_KEY: Final = rf"[A-Za-z0-9_-]*(?:{_STARS}{{2,}}|{_DOTS}(?=[A-Za-z0-9]))[\w*\u2022-]*"
# What prose says after "bearer".
_PROSE: Final = (
    r"(?!(?:tokens?|auth\w*|scheme|header|credentials?|keys?|realm|format|is|was|or|and|must|not)\b)"
)
_FIXED: Final[list[_Rule]] = [
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z ]*PRIVATE KEY[A-Z ]*-----|\Z)",
            re.S,
        ),
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
    text = _redacted(text)
    return _TOKEN.sub(_redact_escaped, text) if _ESCAPE.search(text) else text


def _redacted(text: str) -> str:
    for pattern, replacement in _rules():
        text = pattern.sub(replacement, text)
    return text


_TOKEN: Final = re.compile(r"[^\s\"'<>]+")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}|\\u00[0-9A-Fa-f]{2}")
_MAX_ESCAPED: Final = 8  # times over


def _redact_escaped(found: re.Match[str]) -> str:
    """A text that is written with escapes, as it is if it holds no secret, else plain and without."""
    plain = found[0]
    for _ in range(_MAX_ESCAPED):
        if not _ESCAPE.search(plain):
            break
        plain = unquote(_ESCAPED_JSON.sub(lambda code: chr(int(code[1], 16)), plain))
    redacted = _redacted(plain)
    return found[0] if redacted == plain else " ".join(redacted.split())


_ESCAPED_JSON: Final = re.compile(r"\\u(00[0-9A-Fa-f]{2})")


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
    names = {
        kind: _alternatives(given, " " if kind == "prose" else "") for kind, given in data["names"].items()
    }
    return [
        (
            _pattern(rf"(?P<name>{names['lines']}\\*[\"']?\s*[:=]\s*)(?:{_QUOTED}|{_NEW}[^\r\n\"']+)"),
            _keep_name,
        ),
        (
            _pattern(rf"(?P<name>{names['always']}\\*[\"']?\s*[:=]\s*)(?:{_QUOTED}|{_NEW}{_SCHEMES}{_BARE})"),
            _keep_name,
        ),
        (_pattern(rf"(?P<name>\(\s*b?[\"']{names['always']}[\"']\s*,\s*b?){_QUOTED}(?=\s*\))"), _keep_name),
        (_pattern(rf"(?P<name>{names['prose']}s?{_SAYS}(?P<q>))(?:{_NO_WORD}|{_MASKED})"), _keep_name),
        (_pattern(rf"(?P<name>{names['loose']}{_SAYS}(?P<q>))(?:{_ONLY_A_KEY}|{_MASKED})"), _keep_name),
        (_pattern(rf"(?P<name>\\*[\"']{names['quoted']}\\*[\"']\s*:\s*){_QUOTED}"), _keep_name),
        (_pattern(rf"(?P<name>(?<![-_]){names['quoted']}=){_NEW}(?P<q>){_BARE}"), _keep_name),
        (
            re.compile(rf"(?P<name>\b[A-Z0-9_]+_(?:KEY|TOKEN|CREDENTIALS?)=){_NEW}(?!\d+\b)(?P<q>){_BARE}"),
            _keep_name,
        ),
        *_FIXED,
        *(
            (_prefixed(group["begins"], group["min"], group.get("digit", False)), REDACTED)
            for group in data["prefixes"]
        ),
        (re.compile(rf"{_begun(data['prefixes'][0]['begins'])}{_MASKED_KEY}"), REDACTED),
    ]


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def _alternatives(names: Iterable[str], joined_by: str) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return f"{_WORD_BEGINS}(?:{'|'.join(name.replace('-', f'[-_{joined_by}]?') for name in longest_first)})"


def _keep_name(found: re.Match[str]) -> str:
    quote = found["q"] or ""
    return f"{found['name']}{quote}{REDACTED}{quote}"


def _prefixed(begins: Iterable[str], shortest: int, digit: bool) -> re.Pattern[str]:
    ahead = rf"(?={_KEY}*[0-9])" if digit else ""
    return re.compile(rf"{_begun(begins)}{ahead}{_KEY}{{{shortest - 1},}}[A-Za-z0-9_\-=]")


def _begun(begins: Iterable[str]) -> str:
    return f"{_WORD_BEGINS}(?:{'|'.join(re.escape(prefix) for prefix in begins)})"


def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("redact.toml").read_text())
