"""Run by test_mesh.py in a process of its own: the same training on several meshes.

Prints one JSON line: mesh name -> losses, how far weights moved and are split, what the trained
model continues prompts with, and attention called by each device on its own part.
"""

import json
import sys

import jax
import numpy as np

from minillm.core import axes
from minillm.core.sharding import MeshConfig, make_mesh, on_each_shard, shard_batch
from minillm.inference.generate import generate
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from minillm.train.step import LossConfig, init_state, make_train_step
from pallas_kernels import sliding_window_attention

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
        # A decode step has one token a row: a context axis has nothing to share.
        "generated": None if config.context > 1 else continue_prompts(function, state.params),
        "attention": attention_by_shard(mesh),
    }


def continue_prompts(function: ModelFunction, params) -> list[list[int]]:
    prompts = [[1, 5, 9], [1, 7], [1, *range(10, 25)]]
    return generate(function.bind(params), prompts, max_new_tokens=6, eos_id=2, pad_id=0)


def attention_by_shard(mesh) -> list[float]:
    """Some outputs and gradients of attention, as a kernel is placed."""
    random = np.random.default_rng(1)
    q = random.normal(size=(8, 16, 4, 8)).astype(np.float32)
    k, v = random.normal(size=(2, 8, 16, 2, 8)).astype(np.float32)
    rows = (axes.BATCH, None, axes.KV_HEADS, axes.HEAD_DIM)

    def attend(q, k, v):
        return sliding_window_attention(q, k, v, window=5, implementation="xla")

    def total(q, k, v):
        return (on_each_shard(attend, [rows] * 3, rows)(q, k, v) ** 2).sum()

    with jax.set_mesh(mesh):
        value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)
    return [float(value), *(float(abs(part).sum()) for part in gradients)]


def main() -> None:
    one = jax.devices()[:1]
    meshes = json.loads(sys.argv[1])
    found = {"one": run(MeshConfig(), one, sys.argv[2])}
    for name, sizes in meshes.items():
        found[name] = run(MeshConfig(**sizes), jax.devices(), sys.argv[2])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
