"""Media in requests: data URLs, and what a name says of its type."""

from __future__ import annotations

import mimetypes
import re
from typing import Final, Literal

from .conversation import Media

Kind = Literal["image", "document", "audio", "video"]
_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[^,;]+)*;base64,(?P<data>.*)", re.DOTALL)


def of_url(url: str, kind: Kind, *, detail: str | None = None, name: str | None = None) -> Media:
    """Media at a URL, or inside a data URL."""
    detail = None if detail == "auto" else detail
    if found := _DATA_URL.fullmatch(url):
        return Media(kind, found["type"], found["data"], None, detail, name)
    return Media(kind, None, None, url, detail, name)


def as_url(media: Media) -> str:
    """A URL for it: its own, or a data URL."""
    return media.url or f"data:{type_of(media)};base64,{media.data}"


def type_of(media: Media) -> str:
    """Its media type, as told, as its name says, or as is usual for its kind."""
    guessed = mimetypes.guess_type(media.url or media.name or "")[0]
    return media.media_type or guessed or _USUAL[media.kind]


_USUAL: Final = {
    "image": "image/png",
    "document": "application/pdf",
    "audio": "audio/wav",
    "video": "video/mp4",
}


def kind_of(media_type: str) -> Kind:
    major = media_type.partition("/")[0]
    return major if major in ("image", "audio", "video") else "document"  # type: ignore[return-value]
