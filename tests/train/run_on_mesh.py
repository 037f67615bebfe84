"""Run by test_mesh.py in a process of its own: the same training on several meshes.

Prints one JSON line: mesh name -> losses, and the mesh axes that the first weight is split over.
"""

import json
import sys

import jax
import numpy as np

from minillm.core.sharding import MeshConfig, make_mesh, shard_batch
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from minillm.train.step import LossConfig, init_state, make_train_step

STEPS = 5
MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    windows=(4, None),
    qk_norm=True,
)
LOSS = LossConfig(cross_entropy=0.5, distillation=0.5)


def batches(rows: int = 8, length: int = 16, candidates: int = 4):
    """The same random rows each step, of two segments and padding, with random targets."""
    for _ in range(STEPS):
        random = np.random.default_rng(0)
        segment_ids = np.repeat([[1] * 6 + [2] * 7 + [0] * 3], rows, axis=0).astype(np.int32)
        positions = np.repeat([[*range(6), *range(7), 0, 0, 0]], rows, axis=0).astype(np.int32)
        scores = random.normal(size=(rows, length, 64)).astype(np.float32)
        log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        ids = np.argsort(-log_probs)[..., :candidates].astype(np.int32)
        kept = np.take_along_axis(log_probs, ids, axis=-1)
        yield {
            "tokens": random.integers(4, 64, (rows, length)).astype(np.int32),
            "segment_ids": segment_ids,
            "positions": positions,
            "loss_mask": (segment_ids > 0).astype(np.uint8),
            "candidate_ids": ids,
            "candidate_log_probs": kept,
            "tail_log_prob": np.log1p(-np.exp(kept).sum(-1)).astype(np.float32),
        }


def run(config: MeshConfig, devices: list, optimizer_name: str) -> dict:
    mesh = make_mesh(config, devices)
    function = ModelFunction(MODEL)
    settings = OptimizerConfig(name=optimizer_name, learning_rate=1e-3, warmup_steps=1)
    optimizer = make_optimizer(settings, STEPS, function.axes)
    step = make_train_step(function, optimizer, make_schedule(settings, STEPS), LOSS)
    losses, norms = [], []
    with jax.set_mesh(mesh):
        state = init_state(function, optimizer, function.init(0, mesh), mesh)
        before = [np.array(leaf) for leaf in jax.tree.leaves(state.params)]
        for batch in batches():
            state, metrics = step(state, shard_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["gradient_norm"]))
    leaves = jax.tree.leaves(state.params)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 1]
    shard = max(leaf.size / leaf.addressable_shards[0].data.size for leaf in leaves)
    moment = max(leaf.size / leaf.addressable_shards[0].data.size for leaf in moments)
    moved = [
        float(np.linalg.norm(np.asarray(after) - start))
        for start, after in zip(before, leaves, strict=True)
    ]
    return {
        "losses": losses,
        "gradient_norms": norms,
        "moved": moved,
        "split": shard,
        "moments_split": moment,
    }


def main() -> None:
    one = jax.devices()[:1]
    meshes = json.loads(sys.argv[1])
    found = {"one": run(MeshConfig(), one, sys.argv[2])}
    for name, sizes in meshes.items():
        found[name] = run(MeshConfig(**sizes), jax.devices(), sys.argv[2])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
