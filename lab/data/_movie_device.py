"""Movies drawn on the device: whole numbers, and look-ups in the tables of a Stage."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lab.data._movie_motion import Stage
from lab.data._shapes_scene import COLOURS, GROUNDS, PALETTE, SHAPES, SIZES


def _paths(stage: Stage, label: jax.Array, size: jax.Array, at: jax.Array, u: jax.Array) -> jax.Array:
    """Places in zones, [F, n, K, 2]: from starts `at` with the labels' motion, then by uniform numbers u [F - 2, n, K]."""
    steps, cumulative = jnp.asarray(stage.steps), jnp.asarray(stage.cumulative, jnp.float32)

    def step(state, u):
        at, motion = state
        motion = (u[..., None] >= cumulative[size, motion, at[..., 0], at[..., 1]]).sum(-1)
        return (at + steps[motion], motion), at + steps[motion]

    motion = jnp.broadcast_to(label[:, None], size.shape)
    second = at + steps[motion]
    return jnp.concatenate([at[None], second[None], jax.lax.scan(step, (second, motion), u)[1]])


@partial(jax.jit, static_argnums=(0, 1, 3))
def movies(stage: Stage, frames: int, key: jax.Array, n: int) -> dict[str, jax.Array]:
    """`n` movies: image uint8 [n, frames, size, size, 3] and label int32 [n]."""
    keys, many, on = jax.random.split(key, 7), (n, len(stage.zones)), stage.canvas
    label = jax.random.randint(keys[0], (n,), 0, len(stage.steps))
    shape, colour, size = (jax.random.randint(k, many, 0, len(kinds)) for k, kinds in zip(keys[1:4], (SHAPES, COLOURS, SIZES), strict=True))
    step = jnp.asarray(stage.steps)[label][:, None]
    room = jnp.asarray(stage.rooms)[size] - abs(step)
    at = jnp.maximum(0, -step) + jax.random.randint(keys[4], room.shape, 0, room + 1)
    u = jax.random.uniform(keys[5], (frames - 2, *many))
    corner = _paths(stage, label, size, at, u).swapaxes(0, 1) + stage.zones  # [n, F, K, 2]
    grounds = on.textures.reshape(-1, on.size, on.size)
    out = jnp.asarray(grounds)[jax.random.randint(keys[6], (n, 1), 0, len(grounds))]
    wide = on.sides[1]
    stamps = jnp.asarray(np.array([[np.pad(s, (0, wide - len(s))) for s in kind] for kind in on.stamps]))
    pixel = jnp.arange(on.size)
    for k in range(many[1]):  # one at a time: zones do not overlap
        y, x = pixel[:, None] - corner[:, :, k, 0, None, None], pixel - corner[:, :, k, 1, None, None]
        inside = (y >= 0) & (y < wide) & (x >= 0) & (x < wide)
        mine = stamps[shape[:, k, None, None, None], size[:, k, None, None, None], y.clip(0, wide - 1), x.clip(0, wide - 1)]
        out = jnp.where(inside & mine, (GROUNDS + colour[:, k, None, None, None]).astype(jnp.uint8), out)
    return {"image": jnp.asarray(PALETTE)[out], "label": label}
