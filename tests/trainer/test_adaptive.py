"""The adaptive model: its samples, what the knobs leave out, what a run costs, and how it is kept."""

import itertools
import random

import pytest
import torch

from trainer import adaptive
from trainer.adaptive import (
    FAMILIES,
    N_NODES,
    N_TOKENS,
    AdaptiveModel,
    Knobs,
    Ran,
    Shape,
    Testbed,
    count,
    draw_sample,
    measure,
    train_from_nothing,
)
from trainer.errors import DataError

SMALL = Shape(layers=3, hidden=16)


def untrained(shape=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AdaptiveModel(shape).eval().requires_grad_(False)


def a_sample(family="mixed", seed=0):
    return draw_sample(random.Random(seed), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_following_a_samples_links_leads_from_its_start_to_its_answer(family):
    fewest, most = FAMILIES[family]
    for seed in range(50):
        sample = a_sample(family, seed)

        links = {key: value for key, value in sample.tokens if key < N_NODES}
        node, steps = sample.path[0], 0
        while links[node] != node:
            node, steps = links[node], steps + 1

        assert node == sample.path[-1]
        assert fewest <= steps <= most
        assert len(sample.tokens) == N_TOKENS
        assert len(links) == sample.n_links


def test_the_same_seed_draws_the_same_sample():
    assert a_sample(seed=3) == a_sample(seed=3)
    assert a_sample(seed=3) != a_sample(seed=4)


def test_only_as_many_layers_run_as_the_depth_says():
    model, ran = untrained(), []
    for number, layer in enumerate(model.blocks, start=1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))

    said = model.run(a_sample(), Knobs(depth=2, exit=1.0, tokens=N_TOKENS))

    assert ran == [1, 2]
    assert (said.layers, said.asked) == (2, False)


def test_only_as_many_tokens_go_through_the_layers_as_are_kept():
    model, widths = untrained(), []
    model.blocks[0].register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))

    model.run(a_sample(), Knobs(depth=1, exit=1.0, tokens=10))

    assert widths == [1 + 10]  # the question is always kept


def test_the_tokens_that_are_kept_are_the_most_important_ones():
    model, sample = untrained(), a_sample()
    _, tokens_1NH, importance_1N = model.embed([sample])
    given = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: given.append(inputs[0][0, 1:]))

    model.run(sample, Knobs(depth=1, exit=1.0, tokens=5))

    best = importance_1N[0].argsort(descending=True)[:5]
    assert torch.equal(given[0].sum(0), tokens_1NH[0, best].sum(0)) or torch.allclose(
        given[0].sort(0).values, tokens_1NH[0, best].sort(0).values
    )


def test_a_layer_that_is_sure_enough_is_the_last_one_run():
    model = untrained()
    model.scale.fill_(1000.0)  # every layer's answer is beyond doubt,
    model.ended.bias.fill_(50.0)  # and that the chain ends there too

    assert model.run(a_sample(), Knobs(depth=3, exit=0.9, tokens=N_TOKENS)).layers == 1
    assert model.run(a_sample(), Knobs(depth=3, exit=1.0, tokens=N_TOKENS)).layers == 3


def test_how_sure_a_layer_must_be_is_the_choosers():
    model = untrained()
    model.scale.fill_(1000.0)
    model.ended.weight.zero_()
    model.ended.bias.fill_(1.0)  # the chain ends with a probability of 0.73

    assert model.run(a_sample(), Knobs(depth=3, exit=0.7, tokens=N_TOKENS)).layers == 1
    assert model.run(a_sample(), Knobs(depth=3, exit=0.8, tokens=N_TOKENS)).layers == 3


def test_a_layer_that_doubts_goes_on_to_the_next():
    model = untrained()
    model.ended.bias.fill_(-50.0)

    assert model.run(a_sample(), Knobs(depth=3, exit=0.1, tokens=N_TOKENS)) == Ran(
        model.run(a_sample(), Knobs(3, 1.0, N_TOKENS)).answer, layers=3, tokens=N_TOKENS, asked=True
    )


def test_a_run_of_all_layers_answers_what_training_saw():
    model, sample = untrained(), a_sample()

    answers_1LV, _, _ = model.every_layer([sample])

    for depth in (1, 2, 3):
        assert model.run(sample, Knobs(depth, 1.0, N_TOKENS)).answer == int(
            answers_1LV[0, depth - 1].argmax()
        )


def test_what_stands_where_in_a_sample_means_nothing():
    model, sample = untrained(), a_sample()
    shuffled = adaptive.Sample(sample.family, sample.path, sample.tokens[::-1])

    here, _, _ = model.every_layer([sample])
    there, _, _ = model.every_layer([shuffled])

    assert torch.allclose(here, there, atol=1e-4)


def test_training_lowers_the_loss():
    samples = [a_sample(seed=seed) for seed in range(32)]

    before = adaptive._loss(untrained(), samples)
    after = adaptive._loss(train_from_nothing(SMALL, 30, seed=0), samples)

    assert after < 0.9 * before


@pytest.mark.slow
def test_a_longer_chain_needs_more_layers_and_many_links_need_many_tokens():
    model = train_from_nothing(Shape(), 175, seed=0)

    def accuracy(family, knobs):
        samples = [draw_sample(random.Random(f"{family} {i}"), family) for i in range(150)]
        return sum(model.run(s, knobs).answer == s.path[-1] for s in samples) / len(samples)

    assert accuracy("direct", Knobs(1, 1.0, 64)) > 0.9
    assert accuracy("relay", Knobs(1, 1.0, 64)) < 0.2
    assert accuracy("relay", Knobs(2, 1.0, 64)) > 0.7
    assert accuracy("chain", Knobs(2, 1.0, 64)) < 0.35
    assert accuracy("chain", Knobs(5, 1.0, 64)) > accuracy("chain", Knobs(2, 1.0, 64)) + 0.15
    assert accuracy("direct", Knobs(1, 1.0, 8)) < accuracy("direct", Knobs(1, 1.0, 24)) - 0.15


def test_training_is_the_same_for_the_same_seed_and_draws_nothing_from_the_default_generators():
    torch.manual_seed(5)
    random.seed(5)
    next_draws = torch.rand(3), random.random()

    torch.manual_seed(5)
    random.seed(5)
    first = train_from_nothing(SMALL, 2, seed=1)
    drawn = torch.rand(3), random.random()
    second = train_from_nothing(SMALL, 2, seed=1)

    assert torch.equal(drawn[0], next_draws[0])
    assert drawn[1] == next_draws[1]
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name])


# --- what it costs ----------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that a run moves by what it does: a ms for each layer and half of one for each 8 tokens in it."""

    def __init__(self, model):
        self.now_s = 0.0
        for layer in model.blocks:
            layer.register_forward_hook(self._ran)

    def _ran(self, layer, inputs, output):
        self.now_s += 1e-3 + 0.5e-3 * (inputs[0].shape[1] // 8)

    def __call__(self):
        return self.now_s


def test_the_time_of_each_kind_of_run_is_measured_by_running_it():
    model = untrained()

    latency_ms = measure(model, clock=Ticking(model))

    assert latency_ms["1/8/0"] == pytest.approx(1.5)
    assert latency_ms["3/8/0"] == pytest.approx(4.5)
    assert latency_ms["2/64/1"] == pytest.approx(10.0)
    assert len(latency_ms) == 3 * 8 * 2


def test_a_slow_moment_of_the_machine_is_no_ones_latency():
    model = untrained()
    ticking, calls = Ticking(model), iter(range(10**9))

    def clock():
        if next(calls) % 7 == 0:
            ticking.now_s += 5.0
        return ticking.now_s

    assert measure(model, clock)["2/64/0"] == pytest.approx(10.0)


def test_to_do_more_is_never_faster():
    model = untrained()
    kinds = adaptive._every_kind(model.shape)
    rng = random.Random(0)
    times = itertools.accumulate(rng.random() for _ in itertools.count())

    latency_ms = measure(model, clock=lambda: next(times))

    for kind in kinds:
        for more in kinds:
            if more.does_at_least(kind):
                assert latency_ms[more.place] >= latency_ms[kind.place]


def test_measuring_leaves_the_number_of_threads_as_it_was():
    model, before = untrained(Shape(1, 8)), torch.get_num_threads()
    seen = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        measure(model)

        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_counted_latencies_are_the_multiply_accumulates_of_the_layers():
    H, T = 16, 9
    layer = 8 * H * H * T + 2 * T * T * H
    read_out = N_NODES * H // 2 + H

    latency_ms = count(untrained())

    assert latency_ms["2/8/0"] == pytest.approx((2 * layer + read_out) / adaptive.MACS_PER_MS)
    assert latency_ms["2/8/1"] == pytest.approx((2 * layer + 3 * read_out) / adaptive.MACS_PER_MS)


# --- a testbed --------------------------------------------------------------------------------------------------------


def test_a_run_costs_what_its_kind_costs_with_tokens_rounded_up_to_blocks():
    testbed = Testbed(untrained, count)

    _, latency_ms = testbed.run(a_sample(), Knobs(depth=2, exit=1.0, tokens=20))

    assert latency_ms == count(untrained())["2/24/0"]
    assert testbed.full_ms == count(untrained())["3/64/0"]


def test_an_early_exit_costs_only_the_layers_that_ran():
    model = untrained()
    model.scale.fill_(1000.0)
    model.ended.bias.fill_(50.0)
    testbed = Testbed(lambda: model, count)

    _, latency_ms = testbed.run(a_sample(), Knobs(depth=3, exit=0.5, tokens=64))

    assert latency_ms == testbed.latency_ms["1/64/1"]


def test_a_restored_testbed_answers_and_costs_as_the_one_that_was_kept():
    kept = Testbed(untrained, lambda model: dict.fromkeys(count(model), 7.0)).state()

    def never(*_):
        raise AssertionError("nothing is made again")

    testbed = Testbed(never, never)
    testbed.restore(kept)

    knobs = Knobs(depth=3, exit=1.0, tokens=64)
    assert testbed.run(a_sample(), knobs) == (untrained().run(a_sample(), knobs), 7.0)


def test_what_was_run_before_a_restore_is_not_remembered():
    testbed = Testbed(lambda: untrained(seed=1), count)
    samples = [a_sample(seed=seed) for seed in range(40)]
    knobs = Knobs(depth=3, exit=1.0, tokens=64)
    before = [testbed.run(sample, knobs)[0] for sample in samples]

    testbed.restore(Testbed(untrained, count).state())
    after = [testbed.run(sample, knobs)[0] for sample in samples]

    assert after == [untrained().run(sample, knobs) for sample in samples]
    assert after != before


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_as_it_was(tmp_path):
    model = untrained()

    adaptive.save(model, tmp_path / "new" / "directory")
    loaded = adaptive.load(tmp_path / "new" / "directory")

    assert loaded.shape == SMALL
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, loaded.state_dict()[name])
    assert [p.name for p in (tmp_path / "new" / "directory").iterdir()] == [adaptive.FILE_NAME]


@pytest.mark.parametrize("content", [None, b"", b"no model", "half", "other"])
def test_a_file_that_is_no_adaptive_model_is_refused_with_the_way_out(tmp_path, content):
    path = tmp_path / adaptive.FILE_NAME
    if content == "half":
        adaptive.save(untrained(), tmp_path)
        path.write_bytes(path.read_bytes()[:-500])
    elif content == "other":
        torch.save({"weights": {}}, path)
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match=r"is not an adaptive model that can be read.*--model_path"):
        adaptive.load(tmp_path)
