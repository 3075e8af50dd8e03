"""Settings and `--set key=value`: what is taken, and what is refused with a way out."""

import math

import pytest

from trainer.config import Settings, changed_keys, parse_pairs, with_overrides
from trainer.errors import SettingsError


def test_text_becomes_the_type_of_the_setting():
    settings = with_overrides(Settings(), {"steps": "3", "lr": "1e-5", "temperature": "1"})

    assert (settings.steps, settings.lr, settings.temperature) == (3, 1e-5, 1.0)
    assert isinstance(settings.temperature, float)


def test_an_unknown_setting_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(SettingsError, match="Did you mean 'group_size'") as refused:
        with_overrides(Settings(), {"groupsize": "4"})

    assert "temperature" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [("steps", "many", "a whole number"), ("steps", "1.5", "a whole number"), ("lr", "fast", "a number")],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, wanted):
    with pytest.raises(SettingsError, match=f"setting '{key}' is {wanted}, not '{value}'"):
        with_overrides(Settings(), {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("group_size", 1), ("lr", -1.0), ("lr", math.nan), ("temperature", 0.0), ("seed", -1)],
)
def test_a_value_out_of_range_is_refused(key, value):
    with pytest.raises(SettingsError, match=f"setting '{key}'"):
        with_overrides(Settings(), {key: value})


def test_infinity_is_no_setting():
    with pytest.raises(SettingsError, match="setting 'lr'"):
        with_overrides(Settings(), {"lr": "inf"})


def test_pairs_are_split_at_the_first_equals_sign_and_the_last_wins():
    assert parse_pairs(["a=1", "b=x=y", "a=2"]) == {"a": "2", "b": "x=y"}


def test_a_pair_without_an_equals_sign_is_refused():
    with pytest.raises(SettingsError, match="'lr' is not a setting"):
        parse_pairs(["lr"])


def test_one_optimiser_step_takes_the_whole_batch_unless_a_size_is_set():
    whole = Settings(rollouts_per_step=4, group_size=4)
    parts = Settings(rollouts_per_step=4, group_size=4, train_batch_size=6, epochs_per_step=2)

    assert whole.updates_per_step == 1
    assert (parts.shards_per_epoch, parts.updates_per_step) == (3, 6)


def test_a_resumed_run_may_change_its_length_but_not_its_learning_rate():
    old = {"steps": 10, "lr": 1e-4, "gone": 1}
    new = {"steps": 20, "lr": 2e-4}

    assert changed_keys(old, new) == ["gone", "lr"]
