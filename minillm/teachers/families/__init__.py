"""The families of Hugging Face models that can be teachers, one file each.

Adding a family is adding a file here, with a `FAMILY` in it; nothing else has to name it:

1. `config(values)` reads config.json into a `ModelConfig`. Start from `decoder_config(values)`,
   which reads what all have in common, and `dataclasses.replace` what is special. Read each field
   by its type (`values.integer("sliding_window")`), with the default that transformers has for it;
   a field that is missing or wrong is then an error that names it. Fields that are known to change
   the function and were not read are refused by themselves (`config_reader._TELLING`; add there
   what is not known yet). What differs between layers becomes a pattern: `pattern_of`.
2. `weights(config)` says where each parameter comes from, by the names of the causal language
   model. `decoder` has the usual pieces; join them with `|`. A tensor of another layout is a
   `Source`: its shape, how to view it, in which order our axes stand in it.
3. `FAMILY = Family(model_types=("that_one",), config=config, weights=weights)`.
4. Add shapes to `tests/teachers/family_cases.py`: the test makes random models of them with
   transformers and compares logits, hidden states, windows, packed segments and decoding.

An option that `ModelConfig` does not have goes into `minillm/model`, with a default that leaves
all other models as they are.
"""

import importlib
import pkgutil

from minillm.teachers.families.family import Family


def _found() -> dict[str, Family]:
    families: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "family":
            continue
        family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        for model_type in family.model_types:
            assert model_type not in families, f"two families read {model_type}"
            families[model_type] = family
    return families


# By `model_type` of config.json.
FAMILIES = _found()
