"""JSON schemas of the files that people and other programs write and read."""

from __future__ import annotations

from typing import Any

import msgspec

from layersift.config.recipe import MAIN_KEY, Recipe
from layersift.errors import unknown_name
from layersift.records.reading import READABLE
from layersift.records.run_record import RunRecord
from layersift.records.selection import Selection

KINDS: dict[str, Any] = {"recipe": Recipe, "selection": Selection, "run": RunRecord}


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of a recipe, of a selection file or of a run's record.

    Raises:
        LayersiftError: another kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of schema", kind, KINDS)
    cls = KINDS[kind]
    schema = msgspec.json.schema(cls)
    entries = schema["$defs"][cls.__name__]
    entries["additionalProperties"] = False
    properties = entries["properties"]
    if kind == "recipe":  # as people write it: a text may stand in the place of a section's main entry
        for name in MAIN_KEY:
            properties[name] = {"anyOf": [properties[name], {"type": "string"}]}
    else:
        properties["schema_version"] = {"enum": list(READABLE)}
    if kind == "selection":
        properties["mask"] = {"type": "string", "pattern": "^[01]+$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
