"""The processes below one, as Linux lists them."""

import time
from pathlib import Path


def descendants(pid):
    """Ids of the children of a process, their children, and so on."""
    try:
        found = [int(child) for child in children_of(pid)]
    except OSError:
        return []
    return found + [below for child in found for below in descendants(child)]


def children_of(pid):
    return [
        child
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


def running(pids):
    """Those of the processes that have not ended; a zombie has."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            alive.append(pid)
    return alive


def wait_until_ended(pids, seconds):
    """What is still running of the processes after at most so many seconds."""
    deadline = time.monotonic() + seconds
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running(pids)
