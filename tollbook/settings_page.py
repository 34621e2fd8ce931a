"""Settings for people: what may be written, how a value is shown, and the reference page."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Literal

import orjson
from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tollbook.settings import env_name, sections


def shown(value: Any) -> str:
    """A value as TOML writes it; a secret as `***`."""
    if value is None:
        return "not set"
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return orjson.dumps([str(item) for item in value] if isinstance(value, list) else str(value)).decode()


def allowed_values(field: FieldInfo) -> str:
    """What a setting may be, for people."""
    bounds = [_bound(item) for item in field.metadata]
    return " ".join([_noun(field.annotation), *(text for text in bounds if text)])


def _noun(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        return "a list of texts"
    if type(None) in typing.get_args(annotation):
        return _noun(next(part for part in typing.get_args(annotation) if part is not type(None)))
    nouns = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a text"}
    return nouns[annotation]


def _bound(item: object) -> str:
    if isinstance(item, Ge):
        return f"of at least {item.ge}"
    if isinstance(item, Gt):
        return f"above {item.gt}"
    return f"and at most {item.le}" if isinstance(item, Le) else ""


def reference_page() -> str:
    """docs/settings.md: every setting with its default, what is allowed and what it means."""
    parts = [_PAGE_HEAD]
    for section, model in sections().items():
        rows = [_row(section, name, field) for name, field in model.model_fields.items()]
        head = "| setting | default | allowed | meaning |\n|---|---|---|---|"
        parts.append(f"## [{section}]\n{model.__doc__}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join([*parts, _BUDGETS])


def _row(section: str, name: str, field: FieldInfo) -> str:
    default = shown(field.get_default(call_default_factory=True))
    if name == "data_dir":
        default = '"~/.local/share/tollbook"'
    variable = env_name(f"{section}.{name}")
    return f"| `{name}`<br>`{variable}` | `{default}` | {allowed_values(field)} | {field.description} |"


_PAGE_HEAD = """# Settings

Flags beat the environment, the environment beats the file, the file beats the defaults. The file is
`--config FILE`, else `TOLLBOOK_CONFIG`, else `tollbook.toml` in the current folder, else in the data folder.
`tollbook config` prints every value and where it came from. This page is made from `tollbook/settings.py`.
"""

_BUDGETS = """## [[budgets]]
Budgets of the operator, as many tables as wanted (in the file only). A table is a budget as
`POST /api/v1/budgets` takes it, with an `id` of its own; amounts may be written as numbers, which are read
as exact decimals. `GET /api/v1/budgets` shows them with `"origin": "settings"`; the API does not change or
delete them. What is changed or taken out here follows at the next start.

```toml
[[budgets]]
id = "core-day"
scope = { team = "core" }         # team, project, environment, agent, user_id, session_id, account_id,
                                  # provider, model, access, labels = { ... }; none is everything
meter = "billed_usd"              # or list_usd, tokens, calls
limit = 25.50
period = "day"                    # minute, hour, day, week, month, total, rolling:5h, first_use:5h
time_zone = "Europe/Berlin"
thresholds = [{ at = 0.8, action = "warn" }, { at = 1, action = "deny" }]        # also: notify
on_unpriced = "dearest"           # or deny, allow
per_call = 2                      # the most that one call may need
shadow = false                    # true: decide and record, deny nobody

[[budgets]]
id = "at-most-60-a-minute"
meter = "calls"
limit = 60
period = "minute"
```
"""
