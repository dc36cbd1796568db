"""Devices by name, and what a run of so many FLOPs takes on them at an assumed share of their peak. A pure table."""

from typing import NamedTuple

from lab.errors import UserError, unknown

# dense bfloat16 FLOP/s of a chip, as its vendor publishes them. TPUs: the system pages of cloud.google.com/tpu/docs (v4, v5e, v5p, v6e: "peak compute per chip
# (bf16)"). GPUs: NVIDIA's data sheets, SXM boards, half of the figure with sparsity where only that is printed (A100, H100, H200; B200: HGX B200)
PEAK = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12, "A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


class Chip(NamedTuple):
    """What a TPU chip's vendor publishes beside its peak: bytes of memory, and bytes a second to memory, to chips of its slice and to other slices."""

    memory: float
    memory_rate: float
    slice_rate: float  # one way, over all links together
    network_rate: float
    layouts: tuple[str, ...]  # some of the slices that can be had


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24")
# the system pages of docs.cloud.google.com/tpu/docs (v5e, v5p, v6e): capacity and bandwidth of HBM, half of the bidirectional bandwidth of the
# interconnect, and that of the data center's network, a chip's share of the pod's (v5e 6.4, v6e 25.6 Tbps over 256 chips; v5p 50 Gbps a chip)
CHIPS = {
    "v5e": Chip(16 * 2**30, 819e9, 200e9, 3.125e9, FLAT),
    "v5p": Chip(95 * 2**30, 2765e9, 600e9, 6.25e9, DEEP),
    "v6e": Chip(32 * 2**30, 1600e9, 400e9, 12.5e9, FLAT),
}


class Machine(NamedTuple):
    """So many devices of a kind, the share of their peak that training is assumed to reach (MFU), and the price of a device-hour, if told."""

    kind: str
    count: int
    mfu: float
    price: float | None = None

    def hours(self, flops: float) -> float:
        """Hours that training FLOPs take."""
        return flops / (self.mfu * self.count * PEAK[self.kind]) / 3600


def machine(on: str, mfu: float | None, price: float | None = None) -> Machine:
    """The machine of '--on v5p:64 --mfu 0.4 --price 4.2'; a kind alone is one device.

    Raises:
      UserError: an unknown kind, a count or price that is none, or no share of the peak: nothing here can know it.
    """
    kind, colon, count = on.partition(":")
    known = {k.lower(): k for k in PEAK}
    if kind.lower() not in known:
        raise unknown("--on: device", kind, PEAK)
    if colon and not (count.isdecimal() and int(count)):
        raise UserError(f"--on={on!r}: {count!r} is no number of devices; expected such as {kind}:64")
    if mfu is None:
        raise UserError(f"--on={on} wants --mfu, the share of the peak that training is to be assumed to reach, such as --mfu 0.4")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu} must be above 0 and at most 1, such as 0.4")
    if price is not None and not 0 <= price < float("inf"):
        raise UserError(f"--price={price} must be that of a device-hour, 0 or more")
    return Machine(known[kind.lower()], int(count or 1), mfu, price)
