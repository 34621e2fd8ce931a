"""JSON Schemas of the reviewed files, so that an editor completes and checks them while they are written.

They are generated from the same models that validate the files: `python -m catalog.schema` writes them to
`catalog/schema/`, and a test fails when they are stale. Point an editor at one by a first line such as
`#:schema ../schema/provider.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalog.plan_facts import AccountFile, Plan
from catalog.price_files import PriceFile
from catalog.provider_facts import Labs, Provider
from catalog.toml_source import Data

__all__ = ["FOLDER", "SHAPES", "schema_text"]

FOLDER = Path(__file__).parent / "schema"
SHAPES: dict[str, type[Data]] = {
    "provider": Provider,
    "prices": PriceFile,
    "labs": Labs,
    "plan": Plan,
    "accounts": AccountFile,
}


def schema_text(name: str) -> str:
    """Give the JSON Schema of a shape as it is written to its file."""
    schema: dict[str, Any] = SHAPES[name].model_json_schema()
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"tollbook {name} file"}
    return json.dumps(about | {k: v for k, v in schema.items() if k != "title"}, indent=2) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in SHAPES:
        (FOLDER / f"{name}.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
