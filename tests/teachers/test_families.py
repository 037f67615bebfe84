"""Every family against transformers, on random models of several shapes.

`pytest -s -m "slow or not slow"` prints the largest errors over all shapes as a table.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.teachers.family_cases import CASES, SMALL
from tests.teachers.reference import assembled, names_read, random_model, saved
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

LOGITS = TOLERANCES["float32"].logits
LENGTH, PROMPT, DECODED = 24, 6, 14
# The packed row: documents of 5 and 16 tokens, then padding. A document of 16 is as long as the
# short factors of longrope still hold in CASES; the other rows are longer.
SEGMENTS = np.array([1] * 5 + [2] * 16 + [0] * 3)
# Their layers differ in what they cache.
CACHED = ("Gemma3", "Phi3", "SmolLM3")
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
    return random_model(getattr(transformers, f"{case.family}ForCausalLM"), settings)


def config_name(family):
    return "Gemma3Text" if family == "Gemma3" else family


def outputs(model, tokens):
    """Logits, and the states before every layer and after the last norm."""
    with torch.no_grad():
        got = model(torch.from_numpy(tokens), output_hidden_states=True, use_cache=False)
    return got.logits.numpy(), np.stack([state.numpy() for state in got.hidden_states])


def compiled(function):
    """As a function of a model. Compiling takes most of the time here; rough code does."""
    rough = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    def of_parts(graph, state, *arrays):
        return function(nnx.merge(graph, state), *arrays)

    program = jax.jit(of_parts, static_argnums=0, compiler_options=rough)
    return lambda model, *arrays: program(*nnx.split(model), *arrays)


@compiled
def read_rows(model, tokens, segments):
    states = model.layer_states(tokens, segment_ids=segments)
    hidden = model.final_norm(states[-1])
    return model.logits(hidden), jnp.concatenate([states[:-1], hidden[None]])


@compiled
def read_and_decode(model, tokens):
    """Logits after each token from the prompt's last one on."""
    first, cache = model.prefill(tokens[:, :PROMPT], max_length=tokens.shape[1])

    def step(cache, token):
        logits, cache = model.decode_step(token, cache)
        return cache, logits

    _, rest = jax.lax.scan(step, cache, tokens[:, PROMPT:].T)
    return jnp.concatenate([first[:, None], rest.swapaxes(0, 1)], axis=1)


def cases(quick):
    """The shapes, all but the quick ones marked as slow."""
    return [
        pytest.param(
            case,
            id=f"{case.family}: {case.name}",
            marks=() if quick(case) else pytest.mark.slow,
        )
        for case in CASES
    ]


def draw(*shape):
    return np.random.default_rng(0).integers(0, SMALL["vocab_size"] - 4, shape)


def note(table, case, **errors):
    for name, error in errors.items():
        row = table[case.family]
        row[name] = np.fmax(row[name], error)
        assert error < LOGITS, name


@pytest.mark.parametrize("case", cases(lambda case: case.quick))
def test_logits_and_the_states_of_all_layers_are_those_of_transformers(case, tmp_path, table):
    theirs = reference(case)
    description, tensors = saved(theirs, tmp_path)
    assert names_read(description) == tensors.keys()
    tokens = draw(3, LENGTH)
    segments = np.stack([np.ones(LENGTH, int), np.ones(LENGTH, int), SEGMENTS])
    ours = assembled(description, tensors)
    logits, states = map(np.asarray, read_rows(ours, tokens, segments))
    expected, expected_states = outputs(theirs, tokens[:2])
    assert np.abs(expected).max() > 1
    error = np.abs(logits[:2] - expected).max()
    note(table, case, logits=error, hidden=np.abs(states[:, :2] - expected_states).max())
    if case.windowed:
        note(table, case, window=error)
    for segment in (1, 2):
        at = np.flatnonzero(segment == SEGMENTS)
        alone, alone_states = outputs(theirs, tokens[2:, at])
        note(table, case, segments=np.abs(logits[2:, at] - alone).max())
        note(table, case, segments=np.abs(states[:, 2:, at] - alone_states).max())


@pytest.mark.parametrize("case", cases(lambda case: case.quick and case.family in CACHED))
def test_logits_while_decoding_are_those_of_transformers_on_the_whole(case, tmp_path, table):
    theirs = reference(case)
    tokens = draw(3, DECODED)
    decoded = read_and_decode(assembled(*saved(theirs, tmp_path)), tokens)
    expected, _ = outputs(theirs, tokens)
    note(table, case, decoding=np.abs(decoded - expected[:, PROMPT - 1 :]).max())
