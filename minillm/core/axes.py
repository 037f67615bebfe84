"""Names of mesh axes and of logical array axes, in one place.

A mesh axis is a dimension of the device grid; a logical axis is what a dimension of an array
means. `core.sharding` maps the second kind onto the first.
"""

DATA = "data"
FSDP = "fsdp"
CONTEXT = "context"
TENSOR = "tensor"
MESH_AXES = (DATA, FSDP, CONTEXT, TENSOR)

BATCH = "batch"
LENGTH = "length"
EMBED = "embed"
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
MLP = "mlp"
VOCAB = "vocab"
LAYERS = "layers"
ACTIVATION_EMBED = "activation_embed"
