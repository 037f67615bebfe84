"""Mutated configurations: refused with the name of a field, or read as transformers reads them."""

import copy
import logging
import random

import pytest

from minillm.core.errors import UserError
from minillm.teachers.families import FAMILIES
from minillm.teachers.huggingface_config import describe
from tests.teachers.test_huggingface_config import SPELLINGS, as_transformers_saves, minimal

VALUES = [
    *(None, 0, 1, -1, 2, 7, 64, 1.0, 0.5, -0.5, 10**400, float("nan"), float("inf")),
    *(True, False, "", "silu", "gelu", "relu", "full_attention", [], [1], [0] * 7, [None], [[]]),
    *(["full_attention"] * 7, ["sliding_attention"] * 7, ["full_attention"] * 6 + ["x"]),
    *({}, {"rope_type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 2.0}),
    *({"rope_type": "default"}, {"full_attention": {"rope_type": "default"}}, {"type": []}),
]
SPELLED = [{**minimal(model_type), **fields} for model_type, fields in SPELLINGS]
STARTS = [minimal(model_type) for model_type in FAMILIES] + SPELLED
FIELDS = sorted({field for values in SPELLED for field in values} | {"mlp_bias", "hidden_act"})


def mutated(rng):
    values = copy.deepcopy(rng.choice(STARTS))
    for _ in range(rng.choice([1, 1, 2])):
        group = rng.choice([values, *(x for x in values.values() if isinstance(x, dict)), values])
        field = rng.choice([*FIELDS, *group, *group])
        if rng.random() < 0.2:
            group.pop(field, None)
        else:
            group[field] = copy.deepcopy(rng.choice(VALUES))
    return values


@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated")
@pytest.mark.reference
def test_no_mutation_of_a_configuration_is_read_as_something_else():
    pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rng, read = random.Random(0), 0
    for _ in range(400):
        values = mutated(rng)
        try:
            config = describe(copy.deepcopy(values), ()).config
        except UserError as error:
            assert error.field.startswith("config.json: "), values
            continue
        try:
            saved = as_transformers_saves(values)
        except Exception:  # whatever transformers raises, it does not read this one
            continue
        read += 1
        assert config == describe(saved, ()).config, values
    assert read > 50
