"""Settings: tables of options by evaluation, what a change changes, and sentences on what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.levels import LEVELS
from attriboard.measurements.ablation import Ablation
from attriboard.measurements.capability import DEFAULT_TASKS
from attriboard.measurements.registry import MEASUREMENTS
from attriboard.records.settings import DRAWING, HARDWARE, Settings, default_evaluations, measurement_of
from attriboard.run.suite import Suite
from attriboard.task import tasks


def test_a_table_of_an_evaluations_name_holds_its_options() -> None:
    settings = Settings.model_validate({"max_kept": 3, "ablation": {"draws": 7}, "pruning": {"slice": 0.25}})
    assert settings.max_kept == 3
    assert settings.of("ablation") == Ablation.Options(draws=7)
    assert settings.asked("ablation") == {"draws": 7, "repetitions": 2}
    assert settings.asked("pruning")["slice"] == 0.25
    assert settings == Settings.model_validate({"max_kept": 3, "options": dict(settings.options)})


def test_options_that_are_not_given_are_the_defaults_of_their_evaluation() -> None:
    settings = Settings()
    assert settings.options == {} and settings.evaluations == default_evaluations()
    for name, measurement in MEASUREMENTS.items():
        assert settings.of(name) == measurement.Options()
        assert ("capability" in settings.asked(name)) == measurement.uses_capability
        assert ("repetitions" in settings.asked(name)) == measurement.cross_fitted


def test_settings_come_back_from_json() -> None:
    settings = Settings.model_validate(
        {
            "evaluations": ["pruning", "ablation"],
            "ablation": {"draws": 7},
            "pruning": {"sparsities": [0.25, 0.5]},
            "capability": {"tasks": ["attriboard_facts"], "limit": 3},
        }
    )
    stored = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert list(stored["options"]) == ["ablation", "pruning"]
    again = Settings.model_validate(stored)
    assert again == settings and again.asked("pruning") == settings.asked("pruning")


def test_what_is_measured_are_the_evaluations_that_a_level_has_in_order() -> None:
    settings = Settings(evaluations=("speed", "pruning", "localization", "faithfulness", "pruning"))
    assert settings.evaluations == ("speed", "pruning", "localization", "faithfulness")
    assert settings.measured("heads") == ("faithfulness", "pruning", "speed")
    for level in LEVELS:
        assert settings.measured(level) == tuple(
            name for name in MEASUREMENTS if name in settings.evaluations and level in MEASUREMENTS[name].levels
        )


# --- changes ------------------------------------------------------------------------------------------------------


def test_a_change_changes_tables_key_by_key() -> None:
    settings = Settings.model_validate({"max_kept": 3, "pruning": {"slice": 0.25, "recovery_steps": 4}})
    changed = settings.changed({"min_kept": 1, "pruning": {"slice": 0.75}, "ablation": {"draws": 2}})
    assert (changed.max_kept, changed.min_kept) == (3, 1)
    pruning = changed.asked("pruning")
    assert (pruning["slice"], pruning["recovery_steps"]) == (0.75, 4)
    assert changed.asked("ablation")["draws"] == 2
    assert settings.asked("pruning")["slice"] == 0.25 and settings.options.keys() == {"pruning"}
    assert settings.changed({}) == settings


def test_a_change_of_capability_changes_it_key_by_key() -> None:
    settings = Settings().changed({"capability": {"limit": 3}})
    assert (settings.capability.tasks, settings.capability.limit) == (DEFAULT_TASKS, 3)
    changed = settings.changed({"capability": {"tasks": ("hellaswag",)}})
    assert (changed.capability.tasks, changed.capability.limit) == (("hellaswag",), 3)


@pytest.mark.parametrize("change", [{"max_kpt": 1}, {"ablation": {"draws": 0}}, {"ablation": {"drws": 1}}])
def test_a_change_that_cannot_be_is_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        Settings().changed(change)


def test_only_writes_out_the_options_of_the_named_evaluations() -> None:
    settings = Settings.model_validate({"pruning": {"slice": 0.25}, "ablation": {"draws": 2}})
    only = settings.only(("ablation", "faithfulness", "ablation"))
    assert only.evaluations == ("ablation", "faithfulness")
    assert only.options == {"ablation": Ablation.Options(draws=2), "faithfulness": settings.of("faithfulness")}


def test_drawing_is_what_decides_the_examples() -> None:
    settings = Settings.model_validate({"max_kept": 3, "ablation": {"draws": 2}})
    assert tuple(settings.drawing()) == DRAWING and settings.drawing()["max_kept"] == 3
    assert settings.changed({"ablation": {"draws": 3}, "batch_size": 1}).drawing() == settings.drawing()
    assert set(HARDWARE) <= set(Settings.model_fields) and not set(HARDWARE) & set(DRAWING)


# --- sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("[settings.ablation]\ndraws = 0", "key 'settings.ablation.draws' is 0: input should be greater than or equal"),
        (
            '[settings.ablation]\ndraws = "two"',
            "key 'settings.ablation.draws' is 'two': input should be a valid int",
        ),
        ("[settings.ablation]\ndrawss = 2", "key 'settings.ablation.drawss' is not known here; remove or rename it."),
        (
            "[settings.pruning]\nsparsities = [0.5, 2.0]",
            "key 'settings.pruning.sparsities.1' is 2.0: input should be less than 1",
        ),
        ("[settings.ablaton]\ndraws = 2", "key 'settings.ablaton' is not known here; remove or rename it."),
        ("[settings.capability]\nlimit = 0", "key 'settings.capability.limit' is 0: input should be greater"),
        ("[settings.capability]\nlimt = 3", "key 'settings.capability.limt' is not known here"),
        ("[settings]\nablation = 5", "key 'settings.ablation' is 5: input should be a valid dictionary"),
        ("[settings]\noptions = 5", "key 'settings.options' is 5: input should be a valid dictionary"),
        (
            '[settings]\nevaluations = ["ablaton"]',
            "key 'settings.evaluations': unknown evaluation 'ablaton': did you mean 'ablation'",
        ),
        ("[settings]\nevaluations = []", "key 'settings.evaluations' is []: tuple should have at least 1 item"),
        ('[settings]\ndevice = "tpu"', "key 'settings.device' is 'tpu': string should match pattern"),
    ],
)
def test_what_is_wrong_in_a_suite_is_one_sentence_that_names_the_key(
    toy: dict[str, Path], tmp_path: Path, table: str, sentence: str
) -> None:
    tasks.include(toy["task"])
    text = toy["suite"].read_text()
    groups = text[text.index("[[groups]]") :]
    file = tmp_path / "toy.toml"
    file.write_text(f'name = "toy"\nmodels = ["{toy["model"]}"]\n\n{table}\n\n{groups}')
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(file)
    assert str(caught.value).startswith(f"{file}: {sentence}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("ablation = {draws = 0}", "key 'ablation.draws' is 0: input should be greater than or equal to 1."),
        ("ablation = {drawss = 2}", "key 'ablation.drawss' is not known here; remove or rename it."),
        ('evaluations = ["ablaton"]', "key 'evaluations': unknown evaluation 'ablaton': did you mean 'ablation'"),
    ],
)
def test_what_is_wrong_in_a_group_is_one_too(
    toy: dict[str, Path], tmp_path: Path, settings: str, sentence: str
) -> None:
    tasks.include(toy["task"])
    file = tmp_path / "toy.toml"
    file.write_text(f"{toy['suite'].read_text()}settings = {{{settings}}}\n")
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(file)
    assert str(caught.value).startswith(f"suite 'toy', settings of a group: {sentence}")


def test_an_unknown_evaluation_is_refused_with_near_names_and_a_way_out() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown evaluation 'sanitty': did you mean 'sanity'\? .*--include"):
        measurement_of("sanitty")
