"""Device meshes by named axes."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils

# in this order in every mesh: what talks least comes first, as the first axes lie farthest apart
AXES = ("trials", "data", "fsdp", "sequence", "expert", "tensor")
OUTER = ("trials", "data", "fsdp")  # the axes of which the first that is large enough goes over the network between slices


def mesh(sizes: dict[str, int], devices: list | None = None, slices: int = 0) -> jax.sharding.Mesh:
    """A mesh such as {'data': -1, 'tensor': 2}; one size may be -1 and takes what is left of the devices, an axis of size 0 is not there.

    Devices of several slices (`slices`, 0: as the devices say) are laid so that one of OUTER goes over the network between them and
    all other axes stay within a slice.

    Raises:
      ValueError: an unknown axis, sizes that do not multiply to the number of devices, or slices that no axis goes over.
    """
    devices = jax.devices() if devices is None else devices
    if odd := [a for a in sizes if a not in AXES]:
        raise ValueError(f"run.mesh.{odd[0]} is no axis of a mesh; expected one of: {', '.join(AXES)}")
    named = {a: sizes[a] for a in AXES if sizes.get(a)}
    known = math.prod(n for n in named.values() if n != -1)
    shape = [n if n != -1 else len(devices) // known for n in named.values()]
    if math.prod(shape) != len(devices) or list(named.values()).count(-1) > 1 or min(shape, default=1) < 1:
        raise ValueError(f"run.mesh={named} does not cover {len(devices)} devices; one size may be -1")
    # jax.make_mesh gives Explicit axes by default, which asks every contraction for an output sharding
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.sharding.Mesh(_laid(dict(zip(named, shape, strict=True)), devices, slices), tuple(named), axis_types=auto)


def _laid(shape: dict[str, int], devices: list, slices: int) -> np.ndarray:
    """Devices in the shape of a mesh, near ones along its last axes."""
    told = {getattr(d, "slice_index", None) for d in devices}
    by_slice = len(told) > 1 and None not in told
    slices = slices or (len(told) if by_slice else 1)
    if slices == 1:
        return mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    units = len(told) if by_slice else len({d.process_index for d in devices})
    if units != slices:
        raise ValueError(
            f"run.slices={slices}, but the devices lie in {units} {'slices' if by_slice else 'processes'}; expected 0 or {units}"
        )
    over = next((a for a in OUTER if a in shape and shape[a] % slices == 0), None)
    if over is None:
        raise ValueError(
            f"run.mesh={shape} has no axis that goes over {slices} slices; expected a size of {' or '.join(OUTER)} that {slices} divides"
        )
    inner = [n // slices if a == over else n for a, n in shape.items()]
    outer = [slices if a == over else 1 for a in shape]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, process_is_granule=not by_slice, allow_split_physical_axes=True)
