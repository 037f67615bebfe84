"""Metrics of a run: a JSONL file for programs, TensorBoard files for people."""

import json
import math
from collections.abc import Mapping

from etils import epath
from tensorboardX import SummaryWriter

from minillm.core.hosts import is_first_host
from minillm.core.manifest import write_atomically

METRICS_NAME = "metrics.jsonl"


class MetricWriter:
    """Appends one line a call to `metrics.jsonl` and mirrors it to `tensorboard/`.

    Only the first of several hosts writes. On a restart the lines past the restored step are
    dropped first, so that a run that was killed leaves the same file as one that was not (rates
    and times aside).
    """

    def __init__(self, directory: epath.PathLike, *, resume_step: int = 0) -> None:
        self._writes = is_first_host()
        if not self._writes:
            return
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / METRICS_NAME
        kept = [line for line in read_metrics(directory) if line["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars at a step; values that are not finite become null in the JSONL file."""
        if not self._writes:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **finite}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if not self._writes:
            return
        self._stream.close()
        self._board.close()


def read_metrics(directory: epath.PathLike) -> list[dict[str, float]]:
    """All whole lines of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    path = epath.Path(directory) / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
