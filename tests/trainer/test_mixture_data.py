"""Problems of six sources: rows that are read and refused, problems that are made, and how a batch is mixed."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.mixture import DOMAINS, SOURCES, draw, make, parse_ratios, problem_of, read
from trainer.errors import DataError

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"},
    "math": {
        "problem": "What is $1/2$?",
        "answer": "\\frac{1}{2}",
        "solution": "It is $\\boxed{\\frac{1}{2}}$.",
    },
    "hotpotqa": {
        "question": "Who wrote it?",
        "answer": "Ann",
        "context": [["A book", ["It was written", "by Ann."]], ["Ann", ["She writes."]]],
    },
    "humaneval": {
        "task_id": "HumanEval/999",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    },
    "commonsenseqa": {
        "question": "Where do fish live?",
        "choices": {"label": ["A", "B"], "text": ["nest", "sea"]},
        "answer": "B",
    },
    "mmlu": {"question": "How many?", "choices": ["1", "2", "3", "4"], "answer": 3},
}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("gsm8k", "1024"),
        ("math", "\\frac{1}{2}"),
        ("hotpotqa", "Ann"),
        ("humaneval", "    return 1\n"),
        ("commonsenseqa", "B"),
        ("mmlu", "D"),
    ],
)
def test_a_row_in_the_form_of_its_source_is_a_problem(source, answer):
    problem = problem_of({"source": source, **ROWS[source]})

    assert (problem.source, problem.answer) == (source, answer)


def test_a_context_stands_before_the_question():
    problem = problem_of({"source": "hotpotqa", **ROWS["hotpotqa"]})

    assert problem.question == "It was written by Ann.\nShe writes.\nWho wrote it?"


@pytest.mark.parametrize("answer", ["B", "b", "sea", 1, "1"])
def test_a_choice_may_be_named_by_letter_text_or_place(answer):
    row = {"source": "mmlu", "question": "?", "choices": ["nest", "sea"], "answer": answer}

    assert problem_of(row).answer == "B"


def test_all_files_of_a_directory_are_read_and_those_called_val_or_test_are_held_out(tmp_path):
    write(tmp_path / "a.jsonl", [{"source": s, **row} for s, row in ROWS.items()])
    write(tmp_path / "val.jsonl", [{"source": "gsm8k", "question": "Other?", "answer": "3"}])
    write(tmp_path / "test_set.jsonl", [{"source": "GSM8K", "question": "Third?", "answer": "4"}, ""])
    (tmp_path / "notes.txt").write_text("no problem")

    rows = read(tmp_path)

    assert [problem.source for problem in rows.train] == list(ROWS)
    assert [problem.question for problem in rows.held_out] == ["Third?", "Other?"]


def test_a_question_that_is_held_out_is_not_trained_on_and_none_comes_twice(tmp_path):
    row = {"source": "gsm8k", "question": "How many?", "answer": "3"}
    write(tmp_path / "a.jsonl", [row, {**row, "question": "Another?"}, {**row, "question": "Another?"}])
    write(tmp_path / "val.jsonl", [row])

    rows = read(tmp_path)

    assert [problem.question for problem in rows.train] == ["Another?"]
    assert [problem.question for problem in rows.held_out] == ["How many?"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"source": "gsm8k", "ques', "Unterminated string"),
        ("[1, 2]", "not a JSON object"),
        (
            {"source": "triviaqa", "question": "?", "answer": "1"},
            "its source is 'triviaqa', not one of gsm8k",
        ),
        ({"question": "?", "answer": "1"}, "its source is None"),
        ({"source": "gsm8k", "answer": "1"}, "no text under 'problem' or 'question'"),
        ({"source": "gsm8k", "question": "?", "answer": "many"}, "its answer 'many' is not a number"),
        ({"source": "math", "question": "?", "answer": " "}, "no text under 'answer'"),
        ({"source": "mmlu", "question": "?", "answer": "A"}, "not a list of 2 to 10 texts"),
        ({"source": "mmlu", "question": "?", "choices": ["a", "b"], "answer": "C"}, "none of its 2 choices"),
        ({"source": "humaneval", "prompt": "def f():\n", "test": "x"}, "no text under 'entry_point'"),
        ({"source": "humaneval", "prompt": "p", "test": "x", "entry_point": "f()"}, "no name of a function"),
        ({"source": "hotpotqa", "question": "?", "answer": "a", "context": [3]}, "its context is neither"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, row, reason):
    write(tmp_path / "mixed.jsonl", [{"source": "gsm8k", "question": "?", "answer": "1"}, "", row])

    with pytest.raises(DataError, match=f"mixed.jsonl, line 3: .*{reason}"):
        read(tmp_path)


def test_bytes_that_are_no_text_are_damage_too(tmp_path):
    (tmp_path / "mixed.jsonl").write_bytes(b'{"source": "gsm8k", "question": "\xff", "answer": "1"}\n')

    with pytest.raises(DataError, match=r"mixed.jsonl, line 1: .*utf-8"):
        read(tmp_path)


def test_of_many_damaged_rows_some_are_named_and_all_are_counted(tmp_path):
    write(tmp_path / "mixed.jsonl", ["damaged"] * 9)

    with pytest.raises(DataError, match=r"(?s)9 rows .*line 5.*and 4 more"):
        read(tmp_path)


def test_a_place_without_problems_is_refused_with_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match="no problem in any"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "absent.jsonl")


# --- making -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_problems_and_another_seed_others():
    assert make(20, seed=1) == make(20, seed=1)
    assert make(20, seed=1) != make(20, seed=2)


def test_made_problems_are_distinct_and_of_every_source():
    problems = make(100, seed=0)

    assert len({problem.asked for problem in problems}) == len(problems)
    assert Counter(problem.source for problem in problems) == dict.fromkeys(SOURCES, 100)


def test_a_form_that_has_fewer_problems_gives_what_it_has():
    assert 100 < Counter(problem.source for problem in make(1000, seed=0))["math"] < 1000


def test_the_answer_to_two_hops_stands_in_the_text_and_is_not_that_of_the_other_chain():
    for problem in make(50, seed=0):
        if problem.source == "hotpotqa":
            facts, question = problem.question.split("\n")[:-1], problem.question.split("\n")[-1]
            thing, kind = question.split()[4], question.split()[1]
            (first,) = [fact for fact in facts if f"The {thing} " in fact]
            place = first.removesuffix(".").split(" in ")[1]
            (second,) = [fact for fact in facts if fact.lower().startswith(f"{place} is")]
            assert second.endswith(f"{problem.answer}.")
            assert problem.answer.split()[0] == kind


# --- mixing -----------------------------------------------------------------------------------------------------------

POOLS = {source: [p for p in make(40, seed=0) if p.source == source] for source in SOURCES}


def test_shares_are_read_and_scaled_to_add_up_to_one():
    assert parse_ratios("math=0.4,qa=0.4,code=0.2") == {"math": 0.4, "qa": 0.4, "code": 0.2}
    assert parse_ratios("code=1") == {"code": 1.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("maths=1", "'maths' is no domain; they are math, qa, code"),
        ("math", "not a number"),
        ("math=-1,qa=2", "at least 0"),
        ("math=inf", "finite"),
        ("math=nan", "at least 0"),
        ("math=0", "all shares are 0"),
        ("", "no domain"),
    ],
)
def test_shares_that_cannot_be_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_ratios(text)


def test_a_batch_has_of_each_domain_its_share():
    batch = draw(POOLS, parse_ratios("math=0.4,qa=0.4,code=0.2"), batch_step=3, n=60, seed=0)

    assert Counter(problem.domain for problem in batch) == {"math": 24, "qa": 24, "code": 12}
    assert Counter(problem.source for problem in batch)["hotpotqa"] == 8


@given(
    shares=st.tuples(*[st.floats(0.01, 1.0)] * 3),
    n=st.integers(1, 50),
    batch_step=st.integers(0, 1000),
    seed=st.integers(0, 9),
)
def test_no_source_is_ever_a_whole_problem_away_from_its_share(shares, n, batch_step, seed):
    ratios = {d: s / sum(shares) for d, s in zip(("math", "qa", "code"), shares, strict=True)}

    batch = draw(POOLS, ratios, batch_step, n, seed)

    assert len(batch) == n
    counts, sources_of = Counter(p.source for p in batch), Counter(DOMAINS.values())
    for source in SOURCES:
        fair = n * ratios[DOMAINS[source]] / sources_of[DOMAINS[source]]
        assert abs(counts[source] - fair) < 1 + 1e-6
    # Within a batch none comes twice, while its source has others.
    if max(counts.values()) <= 40:
        assert len({problem.asked for problem in batch}) == n


def test_in_the_long_run_the_shares_hold_though_a_batch_is_too_small_for_them():
    ratios = parse_ratios("math=0.4,qa=0.4,code=0.2")

    drawn = Counter(p.domain for step in range(2000) for p in draw(POOLS, ratios, step, n=2, seed=0))

    assert drawn["code"] / 4000 == pytest.approx(0.2, abs=0.02)
    assert drawn["math"] / 4000 == pytest.approx(0.4, abs=0.02)


def test_what_is_drawn_depends_on_seed_and_batch_and_on_nothing_else():
    ratios = parse_ratios("math=1,qa=1")
    first = draw(POOLS, ratios, 7, 12, seed=0)

    draw(POOLS, ratios, 8, 12, seed=0)

    assert draw(POOLS, ratios, 7, 12, seed=0) == first
    assert draw(POOLS, ratios, 8, 12, seed=0) != first
    assert draw(POOLS, ratios, 7, 12, seed=1) != first


def test_a_domain_without_a_share_is_not_drawn_and_a_source_without_problems_leaves_its_share_to_the_others():
    pools = {**POOLS, "gsm8k": []}

    batch = draw(pools, parse_ratios("math=0.5,qa=0.5,code=0"), 0, 20, seed=0)

    assert Counter(problem.domain for problem in batch) == {"math": 10, "qa": 10}
    assert "gsm8k" not in {problem.source for problem in batch}


def test_a_source_with_few_problems_repeats_them_evenly():
    pools = {"humaneval": POOLS["humaneval"][:3]}

    batch = draw(pools, {"code": 1.0}, 0, 7, seed=0)

    assert sorted(Counter(p.asked for p in batch).values()) == [2, 2, 3]
