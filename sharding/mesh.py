"""Device meshes by named axes."""

import math

import jax


def mesh(sizes: dict[str, int], devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh such as {'data': -1, 'tensor': 2}; one size may be -1 and takes what is left of the devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    known = math.prod(n for n in sizes.values() if n != -1)
    shape = [n if n != -1 else len(devices) // known for n in sizes.values()]
    if math.prod(shape) != len(devices) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"run.mesh={dict(sizes)} does not cover {len(devices)} devices; one size may be -1")
    # jax.make_mesh gives Explicit axes by default, which asks every contraction for an output sharding
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, tuple(sizes), axis_types=auto, devices=devices)
