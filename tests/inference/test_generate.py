import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.inference import generate as generating
from minillm.inference.sampling import Sampler
from minillm.model.config import ModelConfig
from tests.model.models import build, forward

CONFIG = ModelConfig(
    vocab_size=29,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    windows=(6, None),
    max_length=100,
)
NEW = 12
EOS, PAD = 28, 0
PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10], [20, 21, 22, 23, 24], [3, 3]]
SAMPLER = Sampler(temperature=1.5)


def continued(model, prompts, **changes):
    settings = {"max_new_tokens": NEW, "eos_id": EOS, "pad_id": PAD} | changes
    return generating.generate(model, prompts, **settings)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.fixture(scope="module")
def greedy(model):
    return continued(model, PROMPTS)


@pytest.fixture(scope="module")
def expected(model):
    """Twelve tokens by argmax over the full forward pass, one at a time, ends ignored."""
    tokens = np.zeros((len(PROMPTS), 10 + NEW), np.int32)
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    rows = np.arange(len(PROMPTS))
    for step in range(NEW):
        # Causal: what stands to the right of the last token does not matter.
        logits = forward(model, jnp.asarray(tokens))
        tokens[rows, lengths + step] = np.argmax(logits, -1)[rows, lengths + step - 1]
    return [tokens[row, n : n + NEW].tolist() for row, n in enumerate(lengths)]


def until(tokens, end):
    return tokens[: tokens.index(end)] if end in tokens else tokens


def test_greedy_equals_step_by_step_argmax_of_the_full_forward(greedy, expected):
    assert greedy == [until(tokens, EOS) for tokens in expected]
    assert len({tuple(tokens) for tokens in greedy}) > 1


def test_generation_stops_at_the_end_token_and_leaves_it_out(model, expected):
    end = expected[0][4]
    results = continued(model, PROMPTS, eos_id=end)
    assert results == [until(tokens, end) for tokens in expected]
    assert len(results[0]) < NEW


def test_generation_stops_at_the_first_of_several_end_tokens(model, expected):
    ends = [expected[0][4], expected[1][2]]
    results = continued(model, PROMPTS, eos_id=ends)
    assert results == [until(until(tokens, ends[0]), ends[1]) for tokens in expected]
    assert len(results[0]) < NEW and len(results[1]) < NEW


def test_a_prompt_alone_is_continued_as_in_a_batch(model, greedy):
    assert continued(model, PROMPTS[2:3]) == greedy[2:3]


def test_batches_smaller_than_the_work_give_the_same(model, greedy):
    assert continued(model, PROMPTS, batch_size=2) == greedy


def test_each_prompt_gets_what_it_leaves_of_the_models_length(model, greedy):
    prompts = [*PROMPTS, [7] * 95, [7] * 99]
    longer = build(dataclasses.replace(CONFIG, max_length=200))
    wanted = continued(longer, prompts, eos_id=-1)
    cut = continued(model, prompts, eos_id=-1)
    assert [len(tokens) for tokens in cut] == [NEW] * len(PROMPTS) + [5, 1]
    assert cut == [tokens[: len(short)] for tokens, short in zip(wanted, cut, strict=True)]
    filled = continued(model, [[1], [7] * 95], eos_id=-1, max_new_tokens=1000)
    assert [len(tokens) for tokens in filled] == [99, 5]


def test_samples_depend_on_the_key_and_the_index_not_on_the_batch(model):
    drawn = [
        continued(model, PROMPTS, sampler=SAMPLER, key=jax.random.key(seed), batch_size=size)
        for seed, size in ((0, 8), (0, 2), (1, 8))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    same_prompt = continued(model, [[4, 5]] * 2, sampler=SAMPLER, key=jax.random.key(0))
    assert same_prompt[0] != same_prompt[1]


def test_prompts_of_many_lengths_and_other_weights_share_one_program(model):
    compiled = generating._generate_batch._cache_size
    continued(model, [[1, 2], [3]])
    before = compiled()
    graph, weights = nnx.split(model)
    other = nnx.merge(graph, jax.tree.map(lambda w: 0.5 * w, weights))
    continued(other, [[1] * 60, [2] * 7])
    continued(model, [[5] * 31, [2]], eos_id=3)
    assert compiled() == before


def test_no_prompts_give_no_results(model):
    assert continued(model, []) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompts": [[1], []]}, "prompts[1]"),
        ({"prompts": [[1] * 100]}, "prompts[0]"),
        ({"prompts": [[1]], "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompts": [[1]], "batch_size": 0}, "batch_size"),
        ({"prompts": [[1]], "sampler": SAMPLER}, "key"),
        ({"prompts": [[1, 29]]}, "prompts[0][1]"),
    ],
)
def test_bad_input_is_an_error_that_names_its_field(model, changes, field):
    with pytest.raises(UserError) as caught:
        continued(model, **changes)
    assert caught.value.field == field


def test_bfloat16_generates():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    [tokens] = continued(build(config), [[5, 6, 7]])
    assert len(tokens) <= NEW
