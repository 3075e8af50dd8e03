"""Trajectories become tensors with every log-prob over the token that it is of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import Trajectory
from trainer.batch import make_batch, shards

PAD = 99


def trajectory(ids, mask, logprobs, advantage=None):
    return Trajectory(turns=[], token_ids=ids, mask=mask, logprobs=logprobs, advantage=advantage)


def test_mask_and_recorded_logprobs_stand_at_the_predictions_of_the_sampled_tokens():
    two_turns = trajectory([1, 2, 3, 4, 5], [0, 1, 0, 0, 1], [-0.5, -0.25])

    batch = make_batch([two_turns], PAD)

    assert batch.mask_BT.tolist() == [[1, 0, 0, 1]]
    assert batch.old_BT.tolist() == [[-0.5, 0, 0, -0.25]]


def test_a_shorter_trajectory_is_padded_on_the_right_and_the_padding_is_masked():
    batch = make_batch(
        [trajectory([1, 2, 3], [0, 1, 1], [-1.0, -2.0]), trajectory([4, 5], [0, 1], [-3.0])], PAD
    )

    assert batch.token_ids_BT.tolist() == [[1, 2, 3], [4, 5, PAD]]
    assert batch.mask_BT.tolist() == [[1, 1], [1, 0]]


def test_advantages_keep_their_order_and_none_counts_as_zero():
    batch = make_batch([trajectory([1, 2], [0, 1], [-1.0], a) for a in (0.5, None, -2.0)], PAD)

    assert batch.advantages_B.tolist() == [0.5, 0.0, -2.0]
    assert len(batch) == 3


def test_a_logprob_too_few_is_a_mistake_in_our_code():
    with pytest.raises(AssertionError, match="one log-prob per sampled token"):
        make_batch([trajectory([1, 2, 3], [0, 1, 1], [-1.0])], PAD)


def test_a_part_of_a_batch_is_only_as_wide_as_its_longest_trajectory():
    long, short = (
        trajectory([1, 2, 3, 4], [0, 1, 0, 1], [-1.0, -2.0], 1.0),
        trajectory([5, 6], [0, 1], [-3.0], 2.0),
    )
    batch = make_batch([long, short], PAD)

    part = batch.of([1])

    assert (part.token_ids_BT.tolist(), part.mask_BT.tolist(), part.old_BT.tolist()) == (
        [[5, 6]],
        [[1]],
        [[-3.0]],
    )
    assert part.advantages_B.tolist() == [2.0]


def test_micro_batches_keep_every_row_once_and_put_equal_lengths_together():
    batch = make_batch(
        [trajectory([1] * n, [0] + [1] * (n - 1), [-1.0] * (n - 1)) for n in (9, 2, 8, 3)], PAD
    )

    assert batch.micro_batches([0, 1, 2, 3], size=2) == [[1, 3], [2, 0]]


@given(rows=st.lists(st.integers()), n=st.integers(1, 8))
def test_shards_keep_every_row_once_in_order_and_differ_by_at_most_one(rows, n):
    parts = shards(rows, n)

    assert [row for part in parts for row in part] == rows
    assert len(parts) == n
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
