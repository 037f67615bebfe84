"""Folders with random damage: an error that says so, or what other libraries make of them too.

Without PyTorch and transformers, what loads is only called "not compared".
"""

import collections
import contextlib
import importlib.util
import io
import logging
import shutil
import signal

import numpy as np
import pytest
import tokenizers

from minillm.core.errors import UserError
from minillm.teachers import load_teacher
from tests.teachers.folders import WHOLE, write_folder
from tests.teachers.mutations import KINDS, mutate
from tests.tolerances import TOLERANCES

TOLERANCE = TOLERANCES["float32"].logits
TOKENS = np.random.default_rng(0).integers(0, WHOLE.vocab_size, (1, 12)).astype(np.int32)
TEXT = "The sum of the first 12 numbers is x³ − 2.\n\n  café"
# On a busy machine; a load takes a tenth of a second.
SECONDS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("whole") / "teacher")


@pytest.fixture(scope="module")
def unharmed(whole):
    teacher = load_teacher(whole)
    return np.asarray(teacher.logits(TOKENS)), teacher.tokenizer.encode(TEXT)


@contextlib.contextmanager
def at_most(seconds, what):
    def stop(signum, frame):
        raise TimeoutError(f"more than {seconds} s: {what}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def transformers_logits(folder):
    """What transformers computes for the folder, or why it does not; None if it is not here."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return None
    import torch
    import transformers

    logging.disable()
    try:
        with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            return model(torch.from_numpy(TOKENS).long(), use_cache=False).logits.numpy()
    # Whatever it is: the folder is broken, and this is another library's way to say so.
    except Exception as error:
        return error
    finally:
        logging.disable(logging.NOTSET)


def judge(folder, unharmed, kind):
    """How a mutated folder ended; AssertionError if in a wrong result."""
    logits, ids = unharmed
    try:
        teacher = load_teacher(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    found = np.asarray(teacher.logits(TOKENS))
    same = np.abs(found - logits).max() < TOLERANCE
    if kind == "tokenizer":
        assert same
        if teacher.tokenizer.encode(TEXT) == ids:
            return "unharmed"
        other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert teacher.tokenizer.encode(TEXT) == other.encode(TEXT, add_special_tokens=False).ids
        return "as the other library"
    theirs = transformers_logits(folder)
    if theirs is None:
        return "not compared"
    if isinstance(theirs, Exception):
        assert same, f"other logits, where transformers says {theirs}"
        return "unharmed, refused by transformers"
    np.testing.assert_allclose(found, theirs, rtol=0, atol=TOLERANCE)
    return "unharmed" if same else "as the other library"


def run(whole, unharmed, tmp_path, seeds):
    ends = collections.Counter()
    wrong = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        kind, done = mutate(folder, seed)
        with at_most(SECONDS, f"seed {seed}, {done}"):
            try:
                ends[kind, judge(folder, unharmed, kind)] += 1
            # Listed with the others, each with its seed.
            except Exception as error:
                wrong.append(f"seed {seed}, {done}: {type(error).__name__} {error}"[:600])
        shutil.rmtree(folder)
    for (kind, end), count in sorted(ends.items()):
        print(f"{kind:12} {end:36} {count}")
    assert not wrong, "\n".join(wrong)
    assert {kind for kind, end in ends if end == "refused"} == set(KINDS)
    return ends


def test_forty_mutated_folders_are_refused_or_computed_as_elsewhere(whole, unharmed, tmp_path):
    run(whole, unharmed, tmp_path, range(40))


@pytest.mark.slow
def test_three_hundred_mutated_folders(whole, unharmed, tmp_path):
    ends = run(whole, unharmed, tmp_path, range(40, 340))
    # A fuzz that is only ever refused would show nothing of wrong results.
    likely = "as the other library", "not compared"
    assert sum(ends["config", end] for end in likely) >= 8
