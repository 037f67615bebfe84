"""Run by tests in a process of its own: the folder in argv[1] on meshes of 4 devices.

With a mesh's name in argv[2], only this one, as it is used on CPU, and the model in config.json;
else the one that test_loading.py wrote.

Prints one JSON line: for each mesh and way of filling, the largest difference of any device's
block from the same part of what plain numpy makes, and how many blocks were compared.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from safetensors.numpy import load_file

from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.teachers import loading, pieces, shards
from minillm.teachers.huggingface_config import describe
from minillm.teachers.safetensors_files import TensorFiles
from tests.teachers.folders import TINY, llama_map, llama_params

MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=4),
    "tensor": MeshConfig(data=2, tensor=2),
    "both": MeshConfig(data=1, fsdp=2, tensor=2),
}


def compare(directory: pathlib.Path, config: ModelConfig, mesh: MeshConfig, expected: dict) -> dict:
    abstract = ModelFunction(config).abstract(make_mesh(mesh))
    params = loading.load_weights(TensorFiles(directory), llama_map(config, 1.0), abstract)
    found = {"blocks": 0, "difference": 0.0, "split": 0}
    for array, whole in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        for shard in array.addressable_shards:
            difference = np.abs(np.asarray(shard.data) - whole[shard.index]).max()
            found["difference"] = max(found["difference"], float(difference))
            found["blocks"] += 1
            found["split"] = max(found["split"], whole.size // shard.data.size)
    return found


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    tensors: dict = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    only = sys.argv[2] if len(sys.argv) > 2 else None
    config = describe(directory, tensors.keys()).config if only else TINY
    expected = llama_params(config, tensors, plus=1.0)
    if not only:
        # Several pieces a tensor, the last of which overlaps.
        pieces.PIECE_BYTES = 700
    found = {}
    for way in (shards.HostShards,) if only else (shards.HostShards, shards.DeviceShards):
        loading._shards = way
        for name in [only] if only else MESHES:
            found[f"{name} {way.__name__}"] = compare(directory, config, MESHES[name], expected)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
