"""Run by test_scoring.py in a process of its own: the same rows on several meshes.

Writes one file a mesh into argv[1], which holds rows and teacher: targets of the first 8 rows, as
they come from the device; of a store, what is left of them after its float16.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.rows import RowsReader
from minillm.stages.scoring import compile_scorer, placed
from minillm.teachers import load_teacher
from tests.stages.precompute_inputs import stacked


def main() -> None:
    work = Path(sys.argv[1])
    rows = RowsReader(work / "rows")
    batch = stacked(rows, range(8))
    for name, (devices, sizes) in json.loads(sys.argv[2]).items():
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
        teacher = load_teacher(work / "teacher", mesh=mesh, dtype="float32")
        scorer = compile_scorer(
            teacher.config,
            mesh,
            row_length=rows.row_length,
            rows=len(rows),
            candidates=8,
            vocab_size=teacher.config.vocab_size,
            batch_size=8,
        )
        params = nnx.to_pure_dict(nnx.state(teacher.model))
        targets = scorer(placed(params, mesh), batch)
        split = max(x.size / x.addressable_shards[0].data.size for x in jax.tree.leaves(params))
        np.savez(work / name, *targets, split=split, needed=scorer.needed)


if __name__ == "__main__":
    main()
