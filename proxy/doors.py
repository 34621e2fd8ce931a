"""What the operator says about doors: base URLs of one's own, and what a URL's variables are.

    [[door]]
    provider = "azure"
    base_url = "https://llm.example.com/v1"   # in the place of the catalogue's
    variables = { resource = "acme" }

Read from the routes file, strictly: an unknown key or an unsafe URL is refused with its place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from proxy.url_safety import checked_url

__all__ = ["Door", "DoorSettings", "Name", "Strict"]

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Strict(BaseModel):
    """Base of what operators write: no unknown keys, no coercion, no values in messages."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Door(Strict):
    """The operator's word about a provider's doors; `local` lets a URL lead into this network."""

    provider: Name
    access: Name | None = None
    base_url: Name | None = None
    local: bool = False
    variables: dict[Name, Name] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _safe(self) -> Door:
        if self.base_url is not None:
            checked_url(self.base_url, allow_private=self.local)
        return self

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str | None) -> str | None:
        return None if url is None else url.rstrip("/")


class DoorSettings:
    """The doors, by provider."""

    def __init__(self, doors: tuple[Door, ...] = ()) -> None:
        self.doors = doors

    def find(self, provider: str, access: str) -> Door | None:
        """The first that is about a provider and access."""
        for door in self.doors:
            if door.provider == provider and door.access in (None, access):
                return door
        return None
