"""Decoding and scoring agree: with a cache and without, padded and alone, fresh and carried on, sampled and recomputed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.trainer.doubles import logprobs_of
from trainer.errors import SettingsError
from trainer.policy import Completion
from trainer.policy.transformers import TransformersEngine, tiny_qwen3, token_logprobs

VOCAB, END, PAD = 20, 1, 0
PROMPTS = [[2, 3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13, 14]]


def away_from_uniform(model, seed=0):
    """Agreement means something only where the tokens differ in their probability."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return away_from_uniform(tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64))


def engine_of(model, **options):
    return TransformersEngine(model, end_id=END, pad_id=PAD, **options)


@pytest.fixture
def engine(model):
    return engine_of(model)


def ids_of(completions):
    return [completion.token_ids for completion in completions]


def assert_same(completions, others, atol=1e-4):
    assert ids_of(completions) == ids_of(others)
    for completion, other in zip(completions, others, strict=True):
        assert completion.logprobs == pytest.approx(other.logprobs, abs=atol)


def decode_without_cache(model, prompt, max_new):
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_greedy_decoding_in_a_padded_cached_batch_equals_decoding_alone_without_a_cache(model, engine):
    completions = engine.complete(PROMPTS, max_new=12, temperature=0.0)

    assert ids_of(completions) == [decode_without_cache(model, p, 12) for p in PROMPTS]


def test_finished_rows_are_set_aside_without_disturbing_the_others(engine):
    torch.manual_seed(1)

    completions = engine.complete(PROMPTS * 8, max_new=12, temperature=1.0)

    assert len({len(c.token_ids) for c in completions}) > 3, "the rows ended at different tokens"
    for completion in completions:
        assert END not in completion.token_ids[:-1]
        assert completion.token_ids[-1] == END or len(completion.token_ids) == 12
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.error is None


def test_any_of_several_end_tokens_ends_a_completion(model):
    engine = TransformersEngine(model, end_id=[END, 2, 3], pad_id=PAD)
    torch.manual_seed(1)

    completions = engine.complete(PROMPTS * 8, max_new=12, temperature=1.0)

    assert {c.token_ids[-1] for c in completions if len(c.token_ids) < 12} == {END, 2, 3}
    assert all(not {END, 2, 3} & set(c.token_ids[:-1]) for c in completions)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_recorded_at_sampling_are_those_of_the_training_forward(model, engine, temperature):
    torch.manual_seed(2)
    prompts = PROMPTS * 4

    completions = engine.complete(prompts, max_new=12, temperature=temperature)

    recomputed_BT, recorded_BT = logprobs_of(model, prompts, completions, temperature, PAD)
    assert engine.exact
    assert torch.allclose(recomputed_BT, recorded_BT, atol=1e-4)


def test_greedy_logprobs_are_those_of_temperature_1(model, engine):
    completions = engine.complete(PROMPTS, max_new=12, temperature=0.0)

    recomputed_BT, recorded_BT = logprobs_of(model, PROMPTS, completions, 1.0, PAD)
    assert torch.allclose(recomputed_BT, recorded_BT, atol=1e-4)


def test_tokens_are_drawn_as_often_as_their_probability_says(model, engine):
    torch.manual_seed(5)
    n = 20_000

    completions = engine.complete([[2, 3, 4, 5]] * n, max_new=1, temperature=0.7)

    counts_V = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=VOCAB)
    with torch.no_grad():
        expected_V = n * torch.softmax(model(input_ids=torch.tensor([[2, 3, 4, 5]])).logits[0, -1] / 0.7, -1)
    deviations_V = (counts_V - expected_V) / expected_V.clamp(min=1).sqrt()
    assert deviations_V.abs().max() < 5
    assert (expected_V > 100).sum() > 3, "there was something to choose from"


def test_the_same_seed_draws_the_same_tokens(model):
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(engine_of(model).complete(PROMPTS, max_new=8, temperature=1.0))

    assert draws[0] == draws[1]


def test_greedy_decoding_leaves_the_random_generator_alone(engine):
    torch.manual_seed(3)
    before = torch.get_rng_state()

    engine.complete(PROMPTS, max_new=8, temperature=0.0)

    assert torch.equal(torch.get_rng_state(), before)


def test_no_prompts_and_no_room_give_nothing(engine):
    assert engine.complete([], max_new=4, temperature=1.0) == []
    assert engine.complete([[2]], max_new=0, temperature=1.0) == [Completion([], [])]


def test_more_prompts_than_rows_are_decoded_part_by_part_and_return_in_order(model):
    prompts = [p for p in PROMPTS for _ in range(3)]

    completions = engine_of(model, max_rows=5).complete(prompts, max_new=12, temperature=0.0)

    assert_same(completions, engine_of(model).complete(prompts, max_new=12, temperature=0.0))


def test_a_model_in_training_is_decoded_without_dropout_and_left_in_training(model):
    adapted = get_peft_model(
        tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64),
        LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5),
    )
    away_from_uniform(adapted).train()

    completions = engine_of(adapted).complete(PROMPTS, max_new=12, temperature=0.0)

    assert adapted.training
    assert ids_of(completions) == [decode_without_cache(adapted.eval(), p, 12) for p in PROMPTS]


# --- the next turn ----------------------------------------------------------------------------------------------------


class CountingReads:
    """Counts the tokens that a model reads, padding included."""

    def __init__(self, model):
        self.n_tokens = 0
        self._hook = model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.n_tokens += kwargs["input_ids"].numel()

    def close(self):
        self._hook.remove()


def next_turn(prompts, completions, answers):
    return [p + c.token_ids + a for p, c, a in zip(prompts, completions, answers, strict=True)]


token_ids = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6)
turns = st.lists(token_ids, min_size=1, max_size=5)


@settings(max_examples=60)
@given(openings=turns, data=st.data())
def test_carrying_on_gives_what_a_fresh_read_gives(model, openings, data):
    """Whatever comes next: rows that go on, go on twice, end, begin, in any order, and any number of turns."""
    engine = engine_of(model)
    seed = data.draw(st.integers(0, 99), label="seed")
    prompts = openings
    for turn in range(3):
        temperature = data.draw(st.sampled_from([0.0, 1.0]), label="temperature")
        torch.manual_seed(seed + turn)
        completions = engine.complete(prompts, max_new=5, temperature=temperature)
        torch.manual_seed(seed + turn)
        assert_same(completions, engine_of(model).complete(prompts, max_new=5, temperature=temperature))

        going_on = data.draw(
            st.lists(st.sampled_from(range(len(prompts))), min_size=1, max_size=5), label="going on"
        )
        answers = data.draw(
            st.lists(token_ids, min_size=len(going_on), max_size=len(going_on)), label="answers"
        )
        continued = next_turn([prompts[i] for i in going_on], [completions[i] for i in going_on], answers)
        prompts = data.draw(st.permutations(continued + data.draw(turns | st.just([]), label="new")))


def test_a_prompt_that_goes_on_is_read_from_where_the_last_call_ended(model, engine):
    completions = engine.complete(PROMPTS, max_new=5, temperature=0.0)
    prompts = next_turn(PROMPTS, completions, [[2, 3]] * 4)
    reads = CountingReads(model)

    engine.complete(prompts, max_new=1, temperature=0.0)

    reads.close()
    assert reads.n_tokens == 4 * 3, "the last token that was drawn, and the two that are new"


def test_equal_prompts_are_read_once(model, engine):
    reads = CountingReads(model)

    engine.complete([[2, 3, 4, 5]] * 8, max_new=1, temperature=1.0)

    reads.close()
    assert reads.n_tokens == 4


def test_what_was_read_with_other_weights_is_read_again_after_sync(model):
    torch.manual_seed(4)
    other = away_from_uniform(tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64), seed=9)
    engine = engine_of(other)
    prompts = next_turn(PROMPTS, engine.complete(PROMPTS, 5, 0.0), [[2]] * 4)

    engine.sync(model, 1)

    assert_same(engine.complete(prompts, 6, 0.0), engine_of(model).complete(prompts, 6, 0.0))


def test_weights_that_changed_unannounced_are_noticed():
    torch.manual_seed(4)
    model = away_from_uniform(tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64))
    engine = engine_of(model)
    prompts = next_turn(PROMPTS, engine.complete(PROMPTS, 5, 0.0), [[2]] * 4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[2, 3, 4]])).logits.square().sum().backward()

    optimiser.step()

    assert_same(engine.complete(prompts, 6, 0.0), engine_of(model).complete(prompts, 6, 0.0))


def test_more_sequences_than_rows_are_not_kept(model):
    engine = engine_of(model, max_rows=3)
    prompts = next_turn(PROMPTS, engine.complete(PROMPTS, 5, 0.0), [[2]] * 4)
    reads = CountingReads(model)

    completions = engine.complete(prompts, max_new=5, temperature=0.0)

    reads.close()
    assert reads.n_tokens >= sum(map(len, prompts))
    assert_same(completions, engine_of(model).complete(prompts, max_new=5, temperature=0.0))


def test_a_long_new_prompt_beside_one_that_goes_on_disturbs_nothing(model, engine):
    [completion] = engine.complete([[3] * 20], max_new=5, temperature=0.0)
    prompts = [[3] * 20 + completion.token_ids + [4], [5, 6] * 12]

    completions = engine.complete(prompts, max_new=2, temperature=0.0)

    assert_same(completions, engine_of(model).complete(prompts, max_new=2, temperature=0.0))


# --- other models -----------------------------------------------------------------------------------------------------


def adapted_qwen3():
    model = get_peft_model(
        tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64), LoraConfig(r=4, target_modules="all-linear")
    )
    return away_from_uniform(model)


def tiny_llama(**options):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, **options,
    )  # fmt: skip
    return away_from_uniform(LlamaForCausalLM(config).eval())


@pytest.mark.parametrize(
    "other",
    [adapted_qwen3, tiny_llama, lambda: tiny_llama(attn_implementation="eager")],
    ids=["under a LoRA", "Llama", "eager attention"],
)
def test_other_models_decode_and_score_as_their_own_forward_does(other):
    torch.manual_seed(0)
    model = other()
    engine = engine_of(model)

    completions = engine.complete(PROMPTS, 6, 0.0)
    prompts = next_turn(PROMPTS, completions, [[2, 3]] * 4)
    carried_on = engine.complete(prompts, 6, 0.0)

    assert ids_of(completions) == [decode_without_cache(model, p, 6) for p in PROMPTS]
    assert ids_of(carried_on) == [decode_without_cache(model, p, 6) for p in prompts]
    recomputed_BT, recorded_BT = logprobs_of(model, prompts, carried_on, 1.0, PAD)
    assert torch.allclose(recomputed_BT, recorded_BT, atol=1e-4)


def test_a_lora_is_trained_through_the_scores_and_the_model_under_it_is_not():
    torch.manual_seed(0)
    model = adapted_qwen3()

    token_logprobs(model, torch.tensor([[2, 3, 4]]), torch.ones(1, 2), 1.0).sum().backward()

    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_a_model_in_bfloat16_has_logprobs_in_float32_and_does_not_claim_to_be_exact(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    engine = engine_of(half)

    completions = engine.complete(PROMPTS * 4, 8, 0.0)

    assert not engine.exact
    recomputed_BT, recorded_BT = logprobs_of(half, PROMPTS * 4, completions, 1.0, PAD)
    assert recomputed_BT.dtype == torch.float32
    assert torch.allclose(recomputed_BT, recorded_BT, atol=0.2)
    assert (recorded_BT != recorded_BT.bfloat16().float()).any(), "not rounded to bfloat16"


@pytest.mark.parametrize("options", [{"sliding_window": 8}])
def test_a_model_that_does_not_see_all_tokens_is_refused(options):
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=1, **options
    )

    with pytest.raises(SettingsError, match=r"'mistral' models that have a sliding_window.*Choose another"):
        engine_of(MistralForCausalLM(config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_same_is_decoded_and_scored(model):
    torch.manual_seed(0)
    on_gpu = away_from_uniform(tiny_qwen3(VOCAB, hidden=32, layers=2, max_tokens=64)).cuda()
    on_gpu.load_state_dict(model.state_dict())
    engine, gpu_engine = engine_of(model), engine_of(on_gpu)

    for prompts in (PROMPTS * 4, [[*p, 3, 4] for p in PROMPTS * 4]):
        torch.manual_seed(2)
        completions = engine.complete(prompts, 8, 1.0)
        torch.manual_seed(2)
        assert_same(gpu_engine.complete(prompts, 8, 1.0), completions, atol=1e-3)

    recomputed_BT, recorded_BT = logprobs_of(on_gpu, prompts, completions, 1.0, PAD)
    assert recomputed_BT.device.type == "cpu"
    assert torch.allclose(recomputed_BT, recorded_BT, atol=1e-3)


# --- scoring ----------------------------------------------------------------------------------------------------------


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


def test_the_tiny_model_has_about_half_a_million_parameters():
    model = tiny_qwen3(400, hidden=128, layers=3, max_tokens=128)

    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 0.6e6
