"""What every section shares: strict keys, and the types that many keys have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# Every number is bounded, and so is the length of every text and list: far beyond any use, and far
# below what fills memory or takes minutes to read (tests/unit/config/test_bounds.py).
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
Names = Annotated[tuple[Name, ...], Field(max_length=100)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
#: Of something that is built or started so many times.
Few = Annotated[int, Field(ge=1, le=1024)]
#: Images or samples that are computed at once.
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Nfe = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
#: A positive number whose squares and reciprocals are finite in single precision.
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]
#: One that is too large shows in the loss.
LearningRate = Annotated[float, Field(gt=0, le=1e38)]
#: Noise levels between the jumps of a sampler.
Times = Annotated[tuple[Factor, ...], Field(max_length=9999)]
LogMean = Annotated[float, Field(ge=-20, le=20)]
LogStd = Annotated[float, Field(ge=1e-3, le=10)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class OneOf:
    """One of the names that a registry holds: ``Annotated[str, OneOf(tuple(REGISTRY))]``.

    What ``Literal`` does, messages and JSON schema included, with names that the code knows.
    """

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema([*self.names])


#: What is a number or a truth value without quotes, in some version of YAML.
_QUOTED = re.compile(r"(?i)[-+]?[\d_.]+(e[-+]?\d+)?|[yn]|yes|no|true|false|on|off")
_LATER = object()
_KeyT = TypeVar("_KeyT")

#: A key added after a release, e.g. ``recompute: Later[bool] = False``. At its default it is left
#: out of every dump, hence of hashes and weight records: finished trainings keep their hashes.
Later = Annotated[_KeyT, _LATER]


class Section(BaseModel):
    """Keys a file may have; others are refused, and so are truth values for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in (known := cls.model_fields):
                context = {"key": key, "known": [*known]}
                raise PydanticCustomError("unknown_key", "unknown key {key}", context)
        return data

    def _problems(self) -> Iterable[str]:
        """What does not go together: the first sentence is raised, and no other is looked for."""
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _only_numbers_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts true as 1, YAML reads `yes` as true, and pydantic takes "1" for 1.
        _check_type(value, cls.model_fields[str(info.field_name)].annotation)
        return value

    def _left_out(self) -> Iterator[str]:
        """Keys that are in no dump: those that came later, at their defaults."""
        for key, field in type(self).model_fields.items():
            if _LATER in field.metadata and getattr(self, key) == field.default:
                yield key

    @model_serializer(mode="wrap")
    def _without_some_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        left_out = {*self._left_out()}
        return {key: value for key, value in data.items() if key not in left_out}


def duplicates(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def distinct(what: str) -> AfterValidator:
    """A validator of tuples: no entry occurs twice."""

    def checked(value: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"duplicate {what}: {list(value)}")
        return value

    return AfterValidator(checked)


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), distinct("seed")]


def _check_type(value: Any, annotation: Any) -> None:
    """Refuse truth values and text where a number is wanted, and text for a truth value."""
    if get_origin(annotation) is tuple and isinstance(value, list | tuple):
        for one in value:
            _check_type(one, get_args(annotation)[0])
    union = get_origin(annotation) in (Union, UnionType)
    plain = {_bare(branch) for branch in (get_args(annotation) if union else (annotation,))}
    if isinstance(value, bool) and bool not in plain:
        raise ValueError("true and false (also yes, no, on, off) do not belong here")
    numeric = plain & {int, float, bool} and plain <= {int, float, bool, NoneType}
    if numeric and isinstance(value, str) and _QUOTED.fullmatch(value.strip()):
        raise ValueError("this is text, because of its quotes; write it without them")


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
