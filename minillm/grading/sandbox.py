"""The worker's own side: limits on itself, then one question after another until the pipe closes.

Run as `python -m minillm.grading.sandbox`. Questions come pickled from the parent that started this
process; answers go back as JSON, so that nothing that goes wrong here can run there.
"""

import json
import os
import pickle
import resource
import struct
import sys
from typing import BinaryIO

LENGTH = struct.Struct(">Q")
READY = b"ready\n"


def main(memory_bytes: int) -> None:
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever prints must not be taken for an answer.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    # Not at the top: the parent imports LENGTH and READY from here, and must not load SymPy.
    from minillm.grading.symbolic import OPERATIONS

    limit(resource.RLIMIT_AS, memory_bytes)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    sys.setrecursionlimit(5_000)
    answers.write(READY)
    answers.flush()
    while (question := receive(questions)) is not None:
        operation, arguments, seconds = question
        cpu_seconds(seconds)
        try:
            answer = OPERATIONS[operation](*arguments)
        # The border of the process: whatever SymPy raises on such input means "cannot tell".
        except Exception as error:
            answer = None
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def limit(kind: int, value: int) -> None:
    """Lowers a limit for good, where the system has it."""
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        # macOS refuses some limits; the parent's clock holds there too.
        return


def cpu_seconds(seconds: float) -> None:
    """This question's share of the processor: an orphan must not compute for ever."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + seconds) + 2, hard))


def receive(stream: BinaryIO) -> tuple | None:
    """The next question, or None when the parent has gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pickle.loads(stream.read(LENGTH.unpack(head)[0]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
