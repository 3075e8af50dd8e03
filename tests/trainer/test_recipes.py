"""The recipes: found by name, and each split of problems apart from the others."""

import sys
from dataclasses import replace

import pytest

from trainer import problems as problems_module
from trainer import recipes
from trainer.config import with_overrides
from trainer.errors import DataError, SettingsError, UnknownRecipe
from trainer.recipes.calculator import CalculatorSettings, problems_for

SMALL = CalculatorSettings(eval_size=10, warmup_problems=20, rollouts_per_step=4)


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """A machine without any GSM8K file."""
    monkeypatch.delenv("TIDELOG_DATA", raising=False)
    monkeypatch.setattr(problems_module, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setitem(sys.modules, "datasets", None)


def gsm8k_file(path, n):
    path.write_text("".join(f'{{"answer": "<<{a}+7={a + 7}>>"}}\n' for a in range(1, n + 1)))
    return path


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownRecipe, match="Did you mean 'calculator'"):
        recipes.load("calculater")


@pytest.mark.parametrize("name", recipes.SUMMARIES)
def test_every_listed_recipe_loads_and_its_quick_settings_are_valid(name):
    recipe = recipes.load(name)

    assert recipe.name == name
    with_overrides(recipe.settings(), recipe.quick)


def test_the_three_parts_share_no_question(no_data):
    problems = problems_for(SMALL, None)

    parts = [{p.question for p in part} for part in (problems.held_out, problems.warmup, problems.train)]
    assert [len(part) for part in parts[:2]] == [10, 20]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_without_a_file_problems_are_generated_and_said_to_be(no_data):
    assert "generated" in problems_for(SMALL, None).source


@pytest.mark.parametrize("name", ["calculator", "email_agent", "mixture_judge", "multiturn_qa"])
def test_generated_problems_can_be_asked_for_whatever_else_is_found(name, monkeypatch):
    """So that a training that began without a file and a hub can go on where there are both."""
    recipe = recipes.load(name)
    settings = with_overrides(recipe.settings(), recipe.quick)

    asked_for = recipe.problems(settings, problems_module.GENERATED)

    monkeypatch.setattr(problems_module, "__file__", "/nowhere/else/c.py")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delenv("TIDELOG_DATA", raising=False)
    assert asked_for.fingerprint == recipe.problems(settings, None).fingerprint


def test_a_given_file_is_taken_before_the_variable(no_data, monkeypatch, tmp_path):
    given, named = gsm8k_file(tmp_path / "given.jsonl", 80), gsm8k_file(tmp_path / "named.jsonl", 80)
    monkeypatch.setenv("TIDELOG_DATA", str(named))

    assert "given.jsonl" in problems_for(SMALL, given).source
    assert "named.jsonl" in problems_for(SMALL, None).source


def test_a_variable_that_names_no_file_is_an_error_and_not_passed_over(no_data, monkeypatch, tmp_path):
    monkeypatch.setenv("TIDELOG_DATA", str(tmp_path / "absent.jsonl"))

    with pytest.raises(DataError, match=r"absent\.jsonl"):
        problems_for(SMALL, None)


def test_too_few_problems_are_refused_with_both_numbers(no_data, tmp_path):
    with pytest.raises(DataError, match=r"has 30 problems .* need 34"):
        problems_for(SMALL, gsm8k_file(tmp_path / "few.jsonl", 30))


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(SettingsError, match="multiple of 8"):
        CalculatorSettings(hidden=100)


def test_numbers_longer_than_the_setting_are_left_out(no_data):
    problems = problems_for(replace(SMALL, number_digits=2), None)

    every = [*problems.held_out, *problems.warmup, *problems.train]
    assert all(len(problem.answer) <= 2 for problem in every)


def test_the_split_depends_on_the_seed_and_the_fingerprint_tells(no_data):
    first, again, other = (problems_for(replace(SMALL, seed=seed), None) for seed in (1, 1, 2))

    assert first == again
    assert first.fingerprint != other.fingerprint
