"""What every section shares."""

from __future__ import annotations

from ctm_core.config._section import Later, Section


class Inner(Section):
    old: int = 1
    new: Later[bool] = False


class Outer(Section):
    inner: Inner = Inner()
    newer: Later[tuple[float, ...] | None] = None


def test_a_later_key_is_dumped_only_where_it_is_not_at_its_default() -> None:
    assert Outer().model_dump() == {"inner": {"old": 1}}
    assert Outer(newer=None).model_dump(mode="json") == {"inner": {"old": 1}}
    assert Outer.model_validate({"inner": {"new": False}}).model_dump_json() == (
        '{"inner":{"old":1}}'
    )
    changed = Outer(inner=Inner(new=True), newer=(0.5,))
    assert changed.model_dump(mode="json") == {
        "inner": {"old": 1, "new": True},
        "newer": [0.5],
    }
    assert Outer.model_validate(changed.model_dump()) == changed
