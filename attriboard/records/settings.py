"""How cells are run: what is drawn, what is measured with which options, and on what hardware."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError, field_serializer, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..errors import UnknownNameError, in_digits
from ..measurements.base import Measurement, Options, Strict
from ..measurements.capability import CapabilityOptions
from ..measurements.registry import MEASUREMENTS

O = TypeVar("O", bound=Options)  # noqa: E741

DRAWING = ("train_examples", "test_examples", "max_kept", "min_kept", "max_train", "keep", "folds")
"""Settings that decide which examples are scored and judged."""
HARDWARE = ("batch_size", "dtype", "device")
"""Settings of a whole run, which a group of cells cannot change."""


MAX_EXAMPLES = 100_000
"""The most examples of a split that can be asked for."""
MAX_COUNT = 1_000_000
"""The highest count (of draws, steps, samples, repeats) that can be asked for."""
AUTO = "auto"
"""The batch size that follows the memory."""


def default_evaluations() -> tuple[str, ...]:
    """What is measured where a suite names no evaluations."""
    return tuple(name for name, measurement in MEASUREMENTS.items() if measurement.default)


class Settings(Strict):
    """How cells are run.

    In a suite the options of an evaluation stand in a table of its name: ``[settings.ablation]``, ``draws = 5``.

    Attributes:
        train_examples, test_examples: drawn per split (before those answered wrongly are dropped).
        max_kept, min_kept: most and fewest examples kept per split.
        max_train: most of them in the train split, if fewer than max_kept.
        keep: "both" keeps the examples whose prompt the model answers and whose counterfactual it answers by the foil;
            "answer" all whose prompt it answers.
        folds: into how many groups each split is divided where what is measured is cross-fitted (see
            :mod:`attriboard.evaluation.crossfit`); 0 to judge only the test split, by the scores of the train split.
        repetitions: how often each example is then judged, each time by the scores of other examples.
        evaluations: what is measured; of levels of components and of inputs, those that each has.
        options: by evaluation, its options.
        capability: the lm-eval tasks by which changed models are judged, besides the task itself.
        batch_size: most rows in one forward pass; does not change results. "auto" takes as many as the memory of a GPU
            holds and half as many, again and again, where a cell runs out of memory.
        dtype, device: of the model.
    """

    train_examples: int = Field(64, ge=1, le=MAX_EXAMPLES)
    test_examples: int = Field(64, ge=1, le=MAX_EXAMPLES)
    max_kept: int = Field(64, ge=1, le=MAX_EXAMPLES)
    min_kept: int = Field(8, ge=1, le=MAX_EXAMPLES)
    max_train: int | None = Field(None, ge=1, le=MAX_EXAMPLES)
    keep: Literal["both", "answer"] = "both"
    folds: int = Field(4, ge=0, le=1000)
    repetitions: int = Field(2, ge=1, le=1000)
    evaluations: tuple[str, ...] = Field(default_factory=default_evaluations, min_length=1)
    options: dict[str, SerializeAsAny[Options]] = Field(default_factory=dict)
    capability: CapabilityOptions = CapabilityOptions()
    batch_size: Annotated[int, Field(ge=1, le=MAX_COUNT)] | Literal["auto"] = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")

    @model_validator(mode="before")
    @classmethod
    def _tables(cls, data: Any) -> Any:
        """Tables named after evaluations become options."""
        if not isinstance(data, Mapping):
            return data
        plain = {key: value for key, value in data.items() if key not in MEASUREMENTS}
        tables = {key: value for key, value in data.items() if key in MEASUREMENTS}
        given = plain.get("options", {})
        if isinstance(given, Mapping):
            plain["options"] = {**given, **tables}
        return plain

    @field_validator("options", "capability", mode="after")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        """Refuses counts that no run would end with."""
        tables = {"capability": value} if isinstance(value, Options) else value
        for name, options in tables.items():
            for key, given in options:
                for number in given if isinstance(given, (tuple, list)) else (given,):
                    if isinstance(number, int) and abs(number) > MAX_COUNT:
                        text = {
                            "key": key if isinstance(value, Options) else f"{name}.{key}",
                            "kind": "count",
                            "value": in_digits(number),
                        }
                        raise PydanticCustomError(
                            "option",
                            "option {key}: {text}",
                            {**text, "text": f"At most {MAX_COUNT:,} can be counted to"},
                        )
        return value

    @field_validator("batch_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT
        if not number and value != AUTO:
            text = f'Expected a whole number from 1 to {MAX_COUNT:,}, or "{AUTO}"'
            raise PydanticCustomError("batch_size", "{text}", {"text": text})
        return value

    @model_validator(mode="after")
    def _enough_groups(self) -> Settings:
        if 0 < self.folds < self.repetitions:
            raise PydanticCustomError(
                "repetitions",
                "repetitions is {repetitions}, expected at most folds, {folds}: each repetition takes another group",
                {"repetitions": self.repetitions, "folds": self.folds},
            )
        return self

    @field_validator("evaluations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                measurement_of(name)
            except UnknownNameError as error:
                raise PydanticCustomError("unknown_evaluation", "{text}", {"text": str(error)}) from error
        return tuple(dict.fromkeys(names))

    @field_validator("options", mode="before")
    @classmethod
    def _typed(cls, options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        typed = {}
        for name, value in options.items():
            if isinstance(value, Options):
                typed[name] = value
                continue
            try:
                typed[name] = measurement_of(name).Options.model_validate(value)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join([name, *(str(part) for part in first["loc"])])
                raise PydanticCustomError(
                    "option",
                    "option {key}: {text}",
                    {"key": key, "kind": first["type"], "value": repr(first["input"]), "text": first["msg"]},
                ) from error
        return typed

    @field_serializer("options")
    def _sorted(self, options: dict[str, Options]) -> dict[str, Any]:
        return {name: options[name].model_dump(mode="json") for name in sorted(options)}

    def of(self, name: str) -> Options:
        """The options of an evaluation, its defaults where none are given."""
        return self.options.get(name) or MEASUREMENTS[name].Options()

    def measured(self, level: str) -> tuple[str, ...]:
        """The evaluations asked for that a level has, in order."""
        return tuple(name for name in MEASUREMENTS if name in self.evaluations and level in MEASUREMENTS[name].levels)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with some changed; tables of options are changed key by key.

        Raises:
            ValidationError: a change to what is no setting, or to a value it cannot have.
        """
        merged = self.model_dump(exclude={"options", "capability"})
        merged["options"] = dict(self.options)
        merged["capability"] = self.capability
        for key, value in changes.items():
            if isinstance(value, Mapping) and key in MEASUREMENTS:
                merged["options"].pop(key, None)
                merged[key] = {**self.of(key).model_dump(), **value}
            elif isinstance(value, Mapping) and key == "capability":
                merged[key] = {**self.capability.model_dump(), **value}
            else:
                merged[key] = value
        return Settings.model_validate(merged)

    def drawing(self) -> dict[str, Any]:
        """What decides the examples."""
        return self.model_dump(include=set(DRAWING))

    def asked(self, name: str) -> dict[str, Any]:
        """Every option that decides what an evaluation measures, as JSON."""
        options = self.of(name).model_dump(mode="json")
        if MEASUREMENTS[name].cross_fitted:
            options["repetitions"] = self.repetitions
        if MEASUREMENTS[name].uses_capability:
            options["capability"] = self.capability.model_dump(mode="json")
        return options

    def only(self, names: tuple[str, ...]) -> Settings:
        """These settings with the options of the named evaluations written out, and no others."""
        names = tuple(dict.fromkeys(names))
        return self.model_copy(update={"evaluations": names, "options": {name: self.of(name) for name in names}})


def measurement_of(name: str) -> type[Measurement]:
    """The measurement of that name; one that does not ship is looked for among the entry points of evaluations.

    Raises:
        UnknownNameError: there is none; carries near names.
    """
    if name not in MEASUREMENTS:
        _load_entry_points()
    if name not in MEASUREMENTS:
        raise UnknownNameError("evaluation", name, MEASUREMENTS, "One of your own is found by --include FILE.")
    return MEASUREMENTS[name]


@functools.cache
def _load_entry_points() -> None:
    for point in entry_points(group="attriboard.evaluation"):
        with contextlib.suppress(Exception):  # `attriboard list evaluations` says what is wrong with it
            point.load()
