"""Which problems a rollout batch plays."""

from trainer.problems import Problems, places_of_batch


def test_each_problem_is_seen_once_in_an_epoch():
    batches = [places_of_batch(step, 3, 9, seed=1) for step in range(6)]

    first, second = [i for batch in batches[:3] for i in batch], [i for batch in batches[3:] for i in batch]
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_what_does_not_fill_a_batch_is_left_out_of_an_epoch():
    problems = Problems((), range(10), (), "numbers", "f00d")

    assert problems.batches_per_epoch(3) == 3
    played = [i for step in range(3) for i in problems.of_batch(step, 3, seed=1)]
    assert len(set(played)) == 9


def test_a_batch_may_need_more_problems_than_there_are():
    assert sorted(places_of_batch(0, 5, 2, seed=1))[:2] == [0, 0]


def test_a_recipe_may_choose_in_its_own_way():
    problems = Problems((), range(10), (), "numbers", "f00d", choose=lambda step, n, seed: [step] * n)

    assert problems.of_batch(7, 2, seed=1) == [7, 7]
