"""The generator: random access, determinism, splits, streams."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from minillm.core.errors import UserError
from minillm.problems import DOMAINS, FAMILIES, LEVELS, families, make, split_of, stream

EVERY = [(d, f, level) for d in DOMAINS for f in families(d) for level in LEVELS]

_PRINT_RECORDS = """
import json, sys
from minillm.problems import make
assert "jax" not in sys.modules
print(json.dumps([[p.problem, p.solution, p.key] for p in (make(3, i) for i in range(60))]))
"""


def _records_of_a_process(hash_seed: str) -> list[list[str]]:
    out = subprocess.run(
        [sys.executable, "-c", _PRINT_RECORDS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout)


def test_records_do_not_depend_on_the_process_or_its_hash_seed():
    here = [[p.problem, p.solution, p.key] for p in (make(3, i) for i in range(60))]
    assert _records_of_a_process("0") == _records_of_a_process("12345") == here


def test_access_is_random_and_seeds_differ():
    forwards = [make(1, i) for i in range(30)]
    assert [make(1, i) for i in reversed(range(30))] == forwards[::-1]
    assert [make(2, i) for i in range(30)] != forwards


def test_naming_what_would_have_been_drawn_gives_the_same_problem():
    for i in range(100):
        p = make(5, i)
        assert make(5, i, p.domain, p.family, p.level) == p
        assert make(5, i, family=p.family, level=p.level) == p


def test_six_domains_have_at_least_two_families_with_two_levels_each():
    assert len(DOMAINS) == 6
    for domain in DOMAINS:
        assert len(families(domain)) >= 2
        assert all(len(FAMILIES[domain][name].keys) >= 2 for name in families(domain))


def test_every_domain_and_family_is_drawn():
    drawn = {(p.domain, p.family, p.level) for p in (make(0, i) for i in range(2000))}
    assert drawn == set(EVERY)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"domain": "topology"}, "domain"),
        ({"family": "cubic"}, "family"),
        ({"domain": "algebra", "family": "modulus"}, "family of algebra"),
        ({"level": 9}, "level"),
    ],
)
def test_an_unknown_name_is_a_user_error(arguments, field):
    with pytest.raises(UserError) as caught:
        make(0, 0, **arguments)
    assert caught.value.field == field


def test_splits_have_their_shares_and_share_no_key():
    keys = {split: set() for split in ("train", "validation", "test")}
    for i in range(6000):
        p = make(0, i)
        keys[split_of(p)].add(p.key)
    total = sum(map(len, keys.values()))
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["test"] & keys["validation"]
    assert len(keys["train"]) / total == pytest.approx(0.80, abs=0.02)
    assert len(keys["validation"]) / total == pytest.approx(0.08, abs=0.015)
    assert len(keys["test"]) / total == pytest.approx(0.12, abs=0.015)


def test_the_same_key_lies_in_one_split_at_both_levels_and_for_every_seed():
    # Level 1 reaches what level 0 reaches: the key must not name the level.
    split_by_key: dict[str, str] = {}
    for seed, level, i in itertools.product((0, 1), LEVELS, range(1500)):
        p = make(seed, i, "algebra", "quadratic_equation", level)
        assert split_by_key.setdefault(p.key, split_of(p)) == split_of(p)
    assert len(split_by_key) < 4 * 1500


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_every_family_has_enough_keys_to_train_on(domain, family, level):
    wanted = FAMILIES[domain][family].keys[level]
    assert wanted is None or wanted >= 250
    distinct = {make(11, i, domain, family, level).key for i in range(600)}
    assert len(distinct) <= (wanted or 10**9)
    assert len(distinct) > 150


def test_the_stated_number_of_keys_is_the_number_found():
    for domain, family in (("algebra", "quadratic_equation"), ("complex_analysis", "modulus")):
        found = {make(2, i, domain, family, 0).key for i in range(8000)}
        assert len(found) == FAMILIES[domain][family].keys[0]


def test_a_stream_keeps_to_its_split_domains_and_levels_and_repeats_nothing():
    test = list(itertools.islice(stream(0, "test", ("calculus", "optimization")), 150))
    assert {p.domain for _, p in test} == {"calculus", "optimization"}
    assert {p.level for _, p in test} == {0}
    assert all(split_of(p) == "test" for _, p in test)
    assert len({p.key for _, p in test}) == 150
    train = [p for _, p in itertools.islice(stream(0, "train", levels=LEVELS), 600)]
    assert len({p.problem for p in train}) == 600
    assert {p.level for p in train} == set(LEVELS)
    assert not {p.key for p in train} & {p.key for _, p in test}


def test_a_stream_can_start_later():
    whole = list(itertools.islice(stream(0, "train"), 40))
    index = whole[20][0]
    assert list(itertools.islice(stream(0, "train", start=index), 10)) == whole[20:30]


def test_a_stream_refuses_an_unknown_split():
    with pytest.raises(UserError, match="split"):
        next(stream(0, "dev"))  # type: ignore[arg-type]
