"""Run by test_loading.py once a process: TINY's folder in argv[1], its weights cut over two hosts.

Prints one JSON line: the largest difference of this host's blocks from plain numpy's, how many
bytes were read here, and the error for a folder (argv[2]) that only one host sees to be wrong.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from safetensors.numpy import load_file

from minillm.core import hosts
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.functional import ModelFunction
from minillm.teachers.loading import load_weights
from minillm.teachers.safetensors_files import TensorFiles
from tests.teachers.folders import TINY, llama_map, llama_params


def main() -> None:
    hosts.join_hosts()
    read = 0

    class Counting(TensorFiles):
        def read(self, *place):
            nonlocal read
            values = super().read(*place)
            read += values.nbytes
            return values

    abstract = ModelFunction(TINY).abstract(make_mesh(MeshConfig(data=1, tensor=-1)))
    directory, broken = map(pathlib.Path, sys.argv[1:])
    params = load_weights(Counting(directory), llama_map(TINY), abstract)
    expected = llama_params(TINY, load_file(directory / "model.safetensors"))
    differences = [
        float(np.abs(np.asarray(shard.data) - whole[shard.index]).max())
        for array, whole in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True)
        for shard in array.addressable_shards
    ]
    try:
        load_weights(TensorFiles(broken), llama_map(TINY), abstract)
        error = None
    except UserError as raised:
        error = str(raised)
    print(json.dumps({"difference": max(differences), "read": read, "error": error}))


if __name__ == "__main__":
    main()
