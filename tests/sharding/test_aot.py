"""Programs compiled for chips that are not here: collectives are read right from HLO, and what does not fit says by how much."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sharding import aot, hlo
from sharding import mesh as meshes

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install '.[plan]'"
)

# a step in miniature, in the forms that the TPU compiler writes: a loop of six, another of two within it, and what runs beside other work
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.clone (p: bf16[8,16]) -> bf16[2,16] {
  %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[8,16]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, to_apply=%add
  ROOT %slice = bf16[2,16]{1,0} dynamic-slice(%all-reduce.9)
}

%async_start (p: bf16[8,16]) -> bf16[32,16] {
  ROOT %all-gather.16 = bf16[32,16]{1,0:T(8,128)} all-gather(%p), channel_id=41, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}
}

%async_done (p: bf16[8,16]) -> bf16[32,16] {
  ROOT %all-gather.18 = bf16[32,16]{1,0:T(8,128)} all-gather(%p), channel_id=41, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}
}

%inner_condition (p: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(2)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%inner_body (p: (s32[])) -> (s32[]) {
  %collective-permute-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=5, source_target_pairs={{0,4},{4,8},{8,12},{12,0},{1,5},{5,9},{9,13},{13,1}}
  ROOT %t = (s32[]) tuple(%i)
}

%body (p: (s32[])) -> (s32[]) {
  %a = bf16[32,16]{1,0} fusion(%w), kind=kCustom, calls=%async_start
  %b = bf16[32,16]{1,0} fusion(%a), kind=kCustom, calls=%async_done
  %c = bf16[2,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.clone
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%b), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, to_apply=%add
  ROOT %while.2 = (s32[]) while(%t), condition=%inner_condition, body=%inner_body
}

%condition (p: (s32[])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %constant.9), direction=LT
}

ENTRY %main (p: bf16[8,16]) -> f32[] {
  %while.1 = (s32[]) while(%t), condition=%condition, body=%body
  %all-reduce.2 = f32[] all-reduce(%l), channel_id=8, replica_groups=[1,16]<=[16], to_apply=%add
  %all-reduce.3 = f32[] all-reduce(%l), channel_id=9, replica_groups=[16,1]<=[16], to_apply=%add
}
"""


class Square:
    """A mesh of 4 x 4 of which the parser reads names and sizes alone."""

    axis_names, shape, size = ("fsdp", "tensor"), {"fsdp": 4, "tensor": 4}, 16


def test_collectives_count_as_often_as_loops_run_and_once_where_they_are_written_twice():
    found = {(c.kind, c.axes): c[2:] for c in hlo.collectives(TEXT, Square)}
    assert found == {
        ("all-gather", ("fsdp",)): (6, 6 * 1024, 6 * 768),  # [32, 16] of bf16, of which three quarters come from others
        ("reduce-scatter", ("fsdp",)): (6, 6 * 256, 6 * 192),
        ("all-reduce", ("tensor",)): (6, 6 * 128, 6 * 192),
        ("collective-permute", ("fsdp",)): (12, 12 * 256, 12 * 256),
        ("all-reduce", ("fsdp", "tensor")): (1, 4, 8),  # 2 (16 - 1) / 16 of 4 bytes
    }


def test_a_loop_of_unknown_trips_is_refused_where_it_holds_a_collective():
    unknown = TEXT.replace("constant(2)", "parameter(1)")
    with pytest.raises(ValueError, match="loop inner_body holds a collective"):
        hlo.collectives(unknown, Square)
    with pytest.raises(ValueError, match="loop body holds a collective"):  # in what it calls
        hlo.collectives(TEXT.replace("constant(6)", "parameter(1)").replace(" all-reduce(%b)", " add(%b)"), Square)
    silent = unknown.replace("collective-permute-start(%x)", "copy-start(%x)")
    assert len(hlo.collectives(silent, Square)) == 4


@pytest.mark.parametrize(
    "line, group",
    [
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0':(1)2}", [0, 8]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0':(2)2,'axis_1'}", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", [0, 8]),
        ("replica_groups={{0,5},{1,6}}", [0, 5]),
        ("replica_groups={}", list(range(16))),
    ],
)
def test_groups_in_every_form(line, group):
    assert hlo._group(line, 16).tolist() == group


def test_a_message_of_another_failure_is_not_taken_for_one_of_memory():
    text = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: the total memory required for HLO temporaries (26.84G) exceeds available HBM (15.75G)."
    assert aot.out_of_memory(text) == (int(26.84 * 2**30), int(15.75 * 2**30))
    with pytest.raises(RuntimeError, match="UNIMPLEMENTED"):
        aot.out_of_memory("UNIMPLEMENTED: no such thing")


@needs_libtpu
def test_topologies_that_there_are_and_are_not():
    assert len(aot.topology("v5p:8x8x8")) == 512
    assert {d.slice_index for d in aot.topology("v5e:2x2", 2)} == {0, 1}
    with pytest.raises(ValueError, match="not divisible"):
        aot.topology("v5e:3x3")


@needs_libtpu
def test_a_program_tells_what_it_takes_or_how_much_it_lacks(monkeypatch):
    def unread(_):
        raise jax.errors.JaxRuntimeError("jaxlib cannot read some programs of a newer compiler")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unread)
    mesh = meshes.mesh({"fsdp": 4}, aot.topology("v5e:2x2"))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    def lowered(f, n):
        x = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=rows)
        return jax.jit(f, out_shardings=rows).lower(x)

    small, large = aot.cost(lowered(lambda x: x @ x, 256), mesh), aot.cost(lowered(jnp.sin, 2**17), mesh)
    assert jax.config.jax_enable_compilation_cache  # of this machine's own programs
    assert small.fits
    assert small.arguments == 256 * 256 * 4 // 4
    assert sum(c.sent for c in small.collectives if c.axes == ("fsdp",)) >= 3 / 4 * 256 * 256 * 2  # each chip wants the rows of the others
    assert large.needed == 2 * 2**34 * 4 // 4
    assert large.needed > large.has > 15 * 2**30
    assert not large.fits
