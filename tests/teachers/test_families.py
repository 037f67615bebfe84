"""Every family against transformers, on random models of several shapes.

`pytest -s` prints the largest errors as a table.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.teachers.family_cases import CASES, SMALL
from tests.teachers.reference import assembled, names_read, randomise, saved
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

LOGITS = TOLERANCES["float32"].logits
LENGTH, PROMPT, DECODED = 24, 6, 14
# The packed row: documents of 9 and 12 tokens, then padding.
SEGMENTS = np.array([1] * 9 + [2] * 12 + [0] * 3)
COLUMNS = ("logits", "hidden", "window", "segments", "decoding")


@pytest.fixture(scope="module")
def table():
    """The largest error of each family by what was compared, printed at the end."""
    errors = collections.defaultdict(lambda: dict.fromkeys(COLUMNS, float("nan")))
    yield errors
    print("\n" + f"{'':10}" + "".join(f"{name:>10}" for name in COLUMNS))
    for family, row in errors.items():
        print(f"{family:10}" + "".join(f"{row[name]:10.1e}" for name in COLUMNS))


def reference(case):
    settings = getattr(transformers, f"{config_name(case.family)}Config")(
        **{**SMALL, **case.fields}, attn_implementation="eager"
    )
    return randomise(getattr(transformers, f"{case.family}ForCausalLM")(settings))


def config_name(family):
    return "Gemma3Text" if family == "Gemma3" else family


def outputs(model, tokens):
    """Logits, and the states before every layer and after the last norm."""
    with torch.no_grad():
        got = model(torch.from_numpy(tokens), output_hidden_states=True, use_cache=False)
    return got.logits.numpy(), [state.numpy() for state in got.hidden_states]


@nnx.jit
def read_rows(model, tokens, segments):
    states = model.layer_states(tokens, segment_ids=segments)
    hidden = model.final_norm(states[-1])
    return model.logits(hidden), jnp.concatenate([states[:-1], hidden[None]])


@nnx.jit
def read_and_decode(model, tokens):
    """Logits after each token from the prompt's last one on."""
    first, cache = model.prefill(tokens[:, :PROMPT], max_length=tokens.shape[1])

    def step(cache, token):
        logits, cache = model.decode_step(token, cache)
        return cache, logits

    _, rest = jax.lax.scan(step, cache, tokens[:, PROMPT:].T)
    return jnp.concatenate([first[:, None], rest.swapaxes(0, 1)], axis=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")
def test_a_random_model_computes_what_transformers_computes(case, tmp_path, table):
    theirs = reference(case)
    description, tensors = saved(theirs, tmp_path)
    assert names_read(description) == tensors.keys()
    ours = assembled(description, tensors)

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SMALL["vocab_size"] - 4, (3, LENGTH))
    segments = np.stack([np.ones(LENGTH, int), np.ones(LENGTH, int), SEGMENTS])
    logits, states = map(np.asarray, read_rows(ours, tokens, segments))
    expected, expected_states = outputs(theirs, tokens[:2])
    assert np.abs(expected).max() > 1
    errors = {
        "logits": np.abs(logits[:2] - expected).max(),
        "hidden": np.abs(states[:, :2] - np.stack(expected_states)).max(),
    }
    if case.windowed:
        errors["window"] = errors["logits"]
    errors["segments"] = 0.0
    for segment in (1, 2):
        at = np.flatnonzero(segment == SEGMENTS)
        alone, alone_states = outputs(theirs, tokens[2:, at])
        new = [logits[2:, at] - alone, states[:, 2:, at] - np.stack(alone_states)]
        errors["segments"] = max(errors["segments"], *(np.abs(each).max() for each in new))
    decoded = read_and_decode(ours, tokens[:, :DECODED])
    expected, _ = outputs(theirs, tokens[:, :DECODED])
    errors["decoding"] = np.abs(decoded - expected[:, PROMPT - 1 :]).max()

    for name, error in errors.items():
        assert error < LOGITS, (name, error)
        row = table[case.family]
        row[name] = np.fmax(row[name], error)
