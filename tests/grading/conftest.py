"""One grader for the whole folder: its worker process is started once."""

from collections.abc import Iterator

import pytest

from minillm.grading import Grader


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    with Grader() as shared:
        yield shared
