"""Decoding and scoring agree: with a cache and without, padded and alone, sampled and recomputed."""

import pytest
import torch

from eventlog import Trajectory
from trainer.batch import make_batch
from trainer.policy.transformers import TransformersEngine, tiny_qwen3, token_logprobs

VOCAB, END, PAD = 20, 1, 0
PROMPTS = [[2, 3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13, 14]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64)
    # Away from uniform, so that agreement means something.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def engine(model):
    return TransformersEngine(model, end_id=END, pad_id=PAD)


def decode_without_cache(model, prompt, max_new):
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


def test_greedy_decoding_in_a_padded_cached_batch_equals_decoding_alone_without_a_cache(model, engine):
    completions = engine.complete(PROMPTS, max_new=12, temperature=0.0)

    assert [ids for ids, _ in completions] == [decode_without_cache(model, p, 12) for p in PROMPTS]


def test_finished_rows_are_dropped_without_disturbing_the_others(engine):
    torch.manual_seed(1)
    prompts = PROMPTS * 8

    completions = engine.complete(prompts, max_new=12, temperature=1.0)

    lengths = {len(ids) for ids, _ in completions}
    assert len(lengths) > 3, "the rows ended at different tokens"
    for ids, logprobs in completions:
        assert END not in ids[:-1]
        assert ids[-1] == END or len(ids) == 12
        assert len(logprobs) == len(ids)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_recorded_at_sampling_are_those_of_the_training_forward(model, engine, temperature):
    torch.manual_seed(2)
    prompts = PROMPTS * 4
    completions = engine.complete(prompts, max_new=12, temperature=temperature)
    batch = make_batch(
        [
            Trajectory(turns=[], token_ids=p + ids, mask=[0] * len(p) + [1] * len(ids), logprobs=logprobs)
            for p, (ids, logprobs) in zip(prompts, completions, strict=True)
        ],
        PAD,
    )

    recomputed_BT = token_logprobs(model, batch.token_ids_BT, batch.mask_BT, temperature)

    assert torch.allclose(recomputed_BT, batch.old_BT, atol=1e-4)


def test_scoring_is_the_log_softmax_of_the_whole_model(model):
    ids_BT = torch.tensor([[2, 3, 4, 5]])
    mask_BT = torch.tensor([[0, 1, 1]])

    scored = token_logprobs(model, ids_BT, mask_BT, 1.0)

    full = model(input_ids=ids_BT).logits.log_softmax(dim=-1)
    assert torch.allclose(
        scored, torch.stack([torch.zeros(()), full[0, 1, 4], full[0, 2, 5]])[None], atol=1e-5
    )


def test_a_masked_token_gets_no_gradient_through_the_model(model):
    ids_BT = torch.tensor([[2, 3, 4, 5]])
    model.zero_grad()

    token_logprobs(model, ids_BT, torch.zeros(1, 3), 1.0).sum().backward()

    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_same_seed_draws_the_same_tokens(engine):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(engine.complete(PROMPTS, max_new=8, temperature=1.0))

    assert draws[0] == draws[1]


def test_no_prompts_and_no_room_give_nothing(engine):
    assert engine.complete([], max_new=4, temperature=1.0) == []
    assert engine.complete([[2]], max_new=0, temperature=1.0) == [([], [])]


def test_sync_makes_completions_come_from_the_new_weights(model):
    torch.manual_seed(4)
    other = tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64)
    engine = TransformersEngine(other, end_id=END, pad_id=PAD)

    engine.sync(model)

    assert engine.complete(PROMPTS, 6, 0.0) == TransformersEngine(model, end_id=END, pad_id=PAD).complete(
        PROMPTS, 6, 0.0
    )


def test_the_tiny_model_has_about_half_a_million_parameters():
    model = tiny_qwen3(400, hidden=128, layers=3, max_tokens=128)

    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 0.6e6
