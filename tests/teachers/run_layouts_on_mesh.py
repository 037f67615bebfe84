"""Run by test_loaded_layouts.py in a process of its own: the folders in argv[1] on 4 devices.

Each holds a model and what transformers makes of some tokens. Prints one JSON line: for each
folder and mesh, the largest difference of the logits of the loaded teacher.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from minillm.core.sharding import MeshConfig, make_mesh
from minillm.teachers import load_teacher, pieces

MESHES = {"one": MeshConfig(data=1), "2x2": MeshConfig(data=1, fsdp=2, tensor=2)}


def main() -> None:
    # Several pieces a tensor, and blocks that end within a piece.
    pieces.PIECE_BYTES = 700
    found = {}
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        expected = np.load(folder / "expected.npz")
        for name, shape in MESHES.items():
            mesh = make_mesh(shape, jax.devices()[: shape.data * shape.fsdp * shape.tensor])
            logits = load_teacher(folder, mesh=mesh).logits(expected["tokens"])
            difference = np.abs(np.asarray(logits) - expected["logits"]).max()
            found[f"{folder.name} {name}"] = float(difference)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
