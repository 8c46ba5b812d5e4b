"""No number, text or list of a configuration without a bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures import sections
from pydantic import Field, TypeAdapter

from ctm_core.config._section import Name, Section

#: Of a schema's type, the words of which one bounds it below, and one above.
BELOW = {
    "integer": {"minimum", "exclusiveMinimum"},
    "number": {"minimum", "exclusiveMinimum"},
}
ABOVE = {
    "integer": {"maximum", "exclusiveMaximum"},
    "number": {"maximum", "exclusiveMaximum"},
    "string": {"maxLength", "enum", "const", "format"},
    "array": {"maxItems"},
    "object": {"maxProperties"},
}
#: Whose keys are the names of a registry.
NAMED = {"properties", "$ref", "enum", "const"}


def unbounded(schema: dict[str, Any], place: str) -> Iterator[str]:
    """Places of a schema that hold a number, text or list of any size."""
    for branch in ("anyOf", "oneOf", "allOf"):
        for number, inner in enumerate(schema.get(branch, ())):
            yield from unbounded(inner, f"{place}|{number}")
    for key, inner in schema.get("properties", {}).items():
        yield from unbounded(inner, f"{place}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            yield from unbounded(inner, f"{place}[]")
    for key in ("prefixItems", "patternProperties"):
        several = schema.get(key, ())
        for inner in several.values() if isinstance(several, dict) else several:
            yield from unbounded(inner, f"{place}[]")
    kind = schema.get("type", "")
    if NAMED & schema.keys():
        return
    if not kind and not {"anyOf", "oneOf", "allOf"} & schema.keys():
        yield f"{place} holds anything"
    for words in (BELOW.get(kind), ABOVE.get(kind)):
        if words and not words & schema.keys():
            yield f"{place} ({kind}) has none of {sorted(words)}"


@pytest.mark.parametrize("name", sections.schemas())
def test_every_number_text_and_list_has_bounds(name: str) -> None:
    assert list(unbounded(sections.schemas()[name], name)) == []


def test_names_are_short_enough_for_files() -> None:
    # The keys of a mapping are in no schema's words.
    assert TypeAdapter(Name).json_schema()["maxLength"] <= 100


def test_no_section_is_forgotten() -> None:
    assert sections.defined() <= sections.schemas().keys()


def test_what_has_no_bound_is_found() -> None:
    class Loose(Section):
        number: int
        half: float = Field(ge=0)
        texts: tuple[str, ...] = Field(max_length=3)
        table: dict[str, bool]
        maybe: float | None = None
        pair: tuple[int, bool] = (1, True)
        anything: Any = None

    places = [text.split()[0] for text in unbounded(Loose.model_json_schema(), "Loose")]
    assert places == [
        "Loose.number", "Loose.number", "Loose.half", "Loose.texts[]", "Loose.table",
        "Loose.maybe|0", "Loose.maybe|0", "Loose.pair[]", "Loose.pair[]", "Loose.anything",
    ]  # fmt: skip
