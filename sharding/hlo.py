"""Collectives of a compiled program, read from its HLO text: how many run, how many bytes they move, and over which mesh axes."""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32}
BITS |= {"f64": 64, "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = (.*)$")
KIND = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
CALLS = re.compile(r"(?:calls|to_apply|condition|body)=%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}")
WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
FUSED = "all-reduce-scatter"  # how a TPU's program calls a fusion that scatters what it sums


class Collective(NamedTuple):
    """Collectives of a kind over one set of mesh axes in a step: how many, the bytes of their whole arrays, and what a device sends."""

    kind: str
    axes: tuple[str, ...]  # in the order of the mesh
    count: int
    bytes: int
    sent: int  # bytes that a device sends, by a ring over the group


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of a step, most bytes first; loop bodies count as often as they run.

    Raises:
      ValueError: a loop with a collective in it, whose trips the program does not tell.
    """
    bodies, entry = _computations(text)
    often = _multiplicities(bodies, entry)
    total, seen = defaultdict(Counter), set()
    for name, lines in bodies.items():
        for line in lines:
            found = KIND.search(line)
            channel = re.search(r"channel_id=(\d+)", line)
            # what runs beside other work stands in the text at its start, its middle and its end, on one channel
            if found is None or not often[name] or (channel and channel[1] in seen):
                continue
            if channel:
                seen.add(channel[1])
            kind = "reduce-scatter" if found[1] == "all-reduce" and name.startswith(FUSED) else found[1]
            group = _group(line, mesh.size)
            size = _bytes(line[: found.start()])
            if found[2] and kind == "collective-permute":
                size //= 2  # what goes in and what comes out
            elif found[2] and kind == "all-gather":
                size = size * len(group) // (len(group) + 1)
            elif found[1] == "reduce-scatter":
                size *= len(group)
            share = {"all-reduce": 2 * (len(group) - 1) / len(group), "collective-permute": 1.0}.get(kind, (len(group) - 1) / len(group))
            row = total[kind, _axes(group, mesh)]
            row.update(count=often[name], bytes=often[name] * size, sent=round(often[name] * size * share))
    rows = [Collective(kind, axes, r["count"], r["bytes"], r["sent"]) for (kind, axes), r in total.items()]
    return sorted((r for r in rows if r.axes), key=lambda r: -r.sent)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and the name of the first to run."""
    bodies, entry, name = {}, "", ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            name = head[2]
            bodies[name], entry = [], name if head[1] else entry
        elif name and (found := LINE.match(line)):
            bodies[name].append(found[1])
    return bodies, entry


def _multiplicities(bodies: dict[str, list[str]], entry: str) -> Counter:
    """How often every computation runs in one run of the program."""
    often, rank = Counter({entry: 1}), list(bodies)
    for name in reversed(rank):  # what is called stands before what calls it
        for line in bodies[name]:
            loop = WHILE.search(line)
            trips = _trips(line, bodies, *loop.groups()) if loop else 1
            for one, several in CALLS.findall(line):
                for called in [one] if one else re.findall(r"%?([\w.\-]+)", several):
                    often[called] += often[name] * (trips if loop and called == loop[2] else 1)
    return often


def _trips(line: str, bodies: dict[str, list[str]], condition: str, body: str) -> int:
    """Trips of a loop, of what it says or of the one number its condition compares its counter to; 1 where neither tells and none talks."""
    if told := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(told[1])
    inside = [*bodies[condition], *(x for c in bodies[condition] for n, _ in CALLS.findall(c) for x in bodies.get(n, ()))]
    numbers = {int(n) for x in inside for n in re.findall(r"^s32\[\][^ ]* constant\((\d+)\)", x)}
    if not numbers and _talks(body, bodies):
        raise ValueError(f"loop {body} holds a collective, and how often it runs is not told")
    return max(numbers, default=1)


def _talks(name: str, bodies: dict[str, list[str]]) -> bool:
    """Whether a computation, or what it calls, holds a collective."""
    lines = bodies.get(name, ())
    called = (n for line in lines for one, several in CALLS.findall(line) for n in ([one] if one else re.findall(r"%?([\w.\-]+)", several)))
    return any(KIND.search(line) for line in lines) or any(_talks(n, bodies) for n in called)


def _bytes(kind: str) -> int:
    """Bytes of an instruction's result, or of all of a tuple but its flags."""
    sizes = [BITS[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in SHAPE.findall(kind) if t in BITS]
    return sum(s for s in sizes if s > 64 or len(sizes) == 1) // 8


def _group(line: str, devices: int) -> np.ndarray:
    """The devices, by their place in the mesh, of one group that a collective runs over; of a permutation, all that pass on to each other."""
    if found := re.search(r"source_target_pairs=\{\{(.*?)\}\}", line):
        goes = dict(tuple(map(int, pair.split(","))) for pair in found[1].split("},{"))
        ring = [next(iter(goes))]
        while (at := goes.get(ring[-1])) is not None and at not in ring:
            ring.append(at)
        return np.array(ring)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        ids = np.arange(devices).reshape([int(n) for n in found[3].split(",")])
        ids = ids.transpose([int(n) for n in found[4].split(",")]) if found[4] else ids
        return ids.reshape(int(found[1]), int(found[2]))[0]
    if found := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
        sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
        ids = np.arange(devices).reshape(list(sizes.values()))
        for i, n in enumerate(sizes):
            used = re.search(rf"'{re.escape(n)}'(?::\((\d+)\)(\d+))?", found[2])
            part = slice(None) if used and not used[1] else slice(0, 1)
            if used and used[1]:  # a part of an axis: `used[2]` of its devices, each as far apart as those after it are many
                step = sizes[n] // (int(used[1]) * int(used[2]))
                part = slice(0, step * int(used[2]), step)
            ids = ids[(slice(None),) * i + (part,)]
        return ids.ravel()
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return np.array([int(n) for n in found[1].split(",")]) if found else np.arange(devices)


def _axes(group: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(group, tuple(mesh.shape.values())))
    return tuple(a for a, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1)
