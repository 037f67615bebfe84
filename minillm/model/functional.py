"""A model as a pure function of a plain dict of parameters, laid out on a mesh."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from minillm.core import axes
from minillm.core.sharding import fitting_sharding
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer, param_axes

Params = dict[str, Any]
Model = TypeVar("Model", bound=nnx.Module)


class ModelFunction(Generic[Model]):
    """A Transformer, or a model of another class, as a pure function of its parameters.

    Args:
        config: of the model.
        model: its class, called as `model(config, rngs=…)`; a Transformer where absent.
    """

    @overload
    def __init__(self: "ModelFunction[Transformer]", config: ModelConfig) -> None: ...

    @overload
    def __init__(self, config: Any, model: Callable[..., Model]) -> None: ...

    def __init__(self, config: Any, model: Callable[..., Any] = Transformer) -> None:
        self.config = config
        self._model = model
        abstract = nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))
        self._graph, self._state = nnx.split(abstract)

    def bind(self, params: Params) -> Model:
        """The module with these parameters, which may be traced ones."""
        state = jax.tree.map(lambda x: x, self._state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

    @property
    def axes(self) -> Any:
        """Logical axes of every parameter, in the shape of the parameters."""
        return param_axes(self._state)

    def init(self, seed: int, mesh: Mesh) -> Params:
        """Fresh parameters, each made on the devices that keep it."""

        def make() -> Params:
            model = self._model(self.config, rngs=nnx.Rngs(seed))
            return nnx.to_pure_dict(nnx.state(model))

        return jax.jit(make, out_shardings=self.shardings(mesh))()

    def shardings(self, mesh: Mesh) -> Any:
        """Where every parameter lives on the mesh."""
        shapes = nnx.to_pure_dict(self._state)
        return jax.tree.map(
            lambda names, leaf: fitting_sharding(mesh, names, leaf.shape),
            self.axes,
            shapes,
            is_leaf=lambda value: isinstance(value, tuple),
        )

    def abstract(self, mesh: Mesh, dtype: str = "float32") -> Params:
        """Shapes, dtypes and shardings of the parameters, for a restore.

        Args:
            dtype: of matrices that map from or into the stream; norms' scales and biases stay
                float32, as they are used.
        """
        return jax.tree.map(
            lambda names, leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, dtype if _is_matrix(names) else leaf.dtype, sharding=sharding
            ),
            self.axes,
            nnx.to_pure_dict(self._state),
            self.shardings(mesh),
            is_leaf=lambda value: isinstance(value, tuple),
        )


def by_layer(params: Params) -> Params:
    """The same parameters with a tuple of L arrays for each stack of layers; see `run_layers`.

    On CPU a layer is a view of its stack if it starts at a multiple of 64 bytes, as JAX asks of
    memory that it does not own, and else a copy: the stacks stay in memory once only if every
    layer of them starts so. Abstract parameters stay abstract.
    """
    return {**params, "blocks": jax.tree.map(_layers, params["blocks"])}


def _layers(stack: Any) -> tuple[Any, ...]:
    spec = jax.sharding.PartitionSpec(*stack.sharding.spec[1:])
    sharding = NamedSharding(stack.sharding.mesh, spec)
    if isinstance(stack, jax.ShapeDtypeStruct):
        one = jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=sharding)
        return (one,) * stack.shape[0]
    shards = [(np.asarray(shard.data), shard.device) for shard in stack.addressable_shards]
    return tuple(
        jax.make_array_from_single_device_arrays(
            stack.shape[1:],
            sharding,
            [jax.device_put(data[layer], device, may_alias=True) for data, device in shards],
        )
        for layer in range(stack.shape[0])
    )


def _is_matrix(names: tuple[str | None, ...]) -> bool:
    others = [name for name in names if name not in (axes.LAYERS, axes.EMBED)]
    return axes.EMBED in names and bool(others)
