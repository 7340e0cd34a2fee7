"""A JSON schema of config files, for editors that complete and check YAML. No torch.

A file is a layer over defaults and bases, so no key is required. A union is told apart by its ``type`` where a file
says it; where it does not, the type is that of a base, and the keys of any member are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from stepstack.config import RunConfig
from stepstack.keys import attribute_docs

BASE = "Path of a file whose keys this one changes, from this file."


def schema(recipes: Mapping[str, type[RunConfig]]) -> dict[str, Any]:
    """The schema of the files of some recipes, by name: of one alone, or of any of them by the key ``recipe``."""
    names = {cls: name for name, cls in recipes.items()}

    class Generate(_Generate):
        recipe_names = names

    kinds: Any = Union[tuple(recipes.values())]  # noqa: UP007
    title = f"stepstack config of {' or '.join(recipes)}"
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **TypeAdapter(kinds).json_schema(schema_generator=Generate),
        "title": title,
    }


class _Generate(GenerateJsonSchema):
    """pydantic's schema without what holds only for a whole config, and with the docstrings of attributes."""

    recipe_names: Mapping[type, str]

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        found = super().dataclass_schema(schema)
        cls = schema["cls"]
        found.pop("required", None)
        docs, properties = attribute_docs(cls), found.get("properties", {})
        for name in properties:
            if name in docs:
                properties[name]["description"] = docs[name]
        if cls in self.recipe_names:
            properties["recipe"] = {"const": self.recipe_names[cls], "description": docs["recipe"]}
            properties["base"] = {"type": "string", "description": BASE}
        return found

    def tagged_union_schema(self, schema: Any) -> dict[str, Any]:
        found = super().tagged_union_schema(schema)
        return {"anyOf": found["oneOf"]}  # without a type a layer may suit several

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """The default of a section is left out: it is that of its keys, or none where a file has another type."""
        found = super().default_schema(schema)
        if isinstance(found.get("default"), dict):
            del found["default"]
        return found
