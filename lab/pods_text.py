"""Plans of pods in words and as a table; JSON of lab/pods.py in, text out."""

from typing import Any

from lab.layouts import Layout
from lab.log import clock

GIB = 2**30
OF = {
    "weights": "weights",
    "optimizer": "optimizer",
    "average": "average (EMA)",
    "batch": "batch",
    "temporaries": "activations, gradients, copies",
}
LIMITS = {"compute": "FLOPs", "memory": "bytes to memory", "slice": "bytes between chips", "network": "bytes between slices"}


def text(plan: dict[str, Any]) -> str:
    """A plan as some lines: does it fit, by what, how it talks, how long it takes and what it costs."""
    pod = f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"]
    alike = f", one of {plan['alike']} of its shape" if plan["alike"] > plan["trials"] else ""
    lines = [
        f"{plan['experiment']} on {pod} ({plan['chips']} chips of {plan['memory'] / GIB:.0f} GiB): {plan['parameters']:,} parameters, batch "
        f"{plan['batch']}, {plan['dtype']} ({plan['trials']} trial{'s' * (plan['trials'] > 1)}{alike})"
    ]
    lines += [_tried(t) for t in plan["tried"]]
    if not plan["fits"]:
        least = plan["least_estimated_bytes"] / GIB
        lines.append(
            f"does not fit: of {plan['layouts']} layouts the smallest is estimated to need {least:.1f} GiB a chip; take more chips or slices, a smaller "
            "train.batch, or chips with more memory"
        )
        return "\n".join(lines)
    named = plan["named"] and len(plan["tried"]) == 1
    lines += [
        f"fits{'' if named else ', as the best by estimate of ' + str(plan['layouts']) + ' layouts'}: {plan['flags']}",
        "",
        *_bytes(plan),
        "",
        *_collectives(plan),
        "",
        *_time(plan),
    ]
    return "\n".join(lines)


def _tried(t: dict) -> str:
    told = "fits" if t["fits"] else f"does not fit: needs {t['needed'] / GIB:.2f} GiB of {t['has'] / GIB:.2f}"
    return f"  compiled {Layout(**t['layout'])}: {told}"


def _bytes(plan: dict) -> list[str]:
    found = plan["bytes"]
    rows = [f"  {told:32} {found[k] / GIB:9.3f} GiB" for k, told in OF.items()]
    share = found["peak"] / plan["memory"]
    return ["a chip holds", *rows, f"  {'at most, all together':32} {found['peak'] / GIB:9.3f} GiB, {share:.0%} of its memory"]


def _collectives(plan: dict) -> list[str]:
    rows = [
        f"  {c['kind']:20} {'+'.join(c['axes']):18} {c['count']:>7} {c['bytes'] / GIB:>12.3f} {c['sent'] / GIB:>12.3f}"
        for c in plan["collectives"]
    ]
    return [
        "a step talks" if rows else "a step talks to nobody",
        *([f"  {'':20} {'over':18} {'times':>7} {'GiB':>12} {'sent GiB':>12}"] * bool(rows)),
        *rows,
    ]


def _time(plan: dict) -> list[str]:
    seconds, (least, most), mfu, run = plan["seconds"], plan["step_s"], plan["mfu"], plan["run_s"]
    terms = ", ".join(f"{told} {seconds[k] * 1e3:,.1f} ms" for k, told in LIMITS.items() if seconds[k])
    lines = [
        f"estimate of a step, {plan['flops_step']:.3e} FLOPs, at the chip's published rates: {terms}",
        f"  {least * 1e3:,.1f} ms where all of these overlap (the largest: MFU {mfu[0]:.0%}), {most * 1e3:,.1f} ms where none does (their sum: MFU {mfu[1]:.0%})",
        f"  {plan['steps']:,} steps: {clock(run[0])} to {clock(run[1])} h:mm:ss, {run[0] * plan['chips'] / 3600:,.0f} to {run[1] * plan['chips'] / 3600:,.0f} chip-hours",
    ]
    if "price" in plan:
        (a, b), (c, d) = plan["step_cost"], plan["run_cost"]
        lines.append(f"  at {plan['price']:g} a chip-hour: {a:,.4f} to {b:,.4f} a step, {c:,.0f} to {d:,.0f} the run")
    return lines


def table(plans: list[dict[str, Any]]) -> str:
    """Plans as a Markdown table, a line each."""
    head = ("experiment", "parameters", "pod", "layout", "GiB a chip", "of", "step, estimated", "MFU, estimated", "compile")
    rows = [head, ("---",) * len(head)]
    for p in plans:
        pod = f"{p['slices']} x {p['topology']}" if p["slices"] > 1 else p["topology"]
        first = (p["experiment"], f"{p['parameters'] / 1e9:.2f}B", pod)
        failed = [t for t in p["tried"] if not t["fits"]]
        note = "".join(f"{Layout(**t['layout'])} needs {t['needed'] / GIB:.1f}; " for t in failed)
        if not p["fits"]:
            rows.append((*first, f"none fits: {note.rstrip('; ')}", "", f"{p['memory'] / GIB:.0f}", "", "", ""))
            continue
        (a, b), (m, n) = p["step_s"], p["mfu"]
        rows.append(
            (
                *first,
                note + str(Layout(**p["layout"])),
                f"{p['bytes']['peak'] / GIB:.1f}",
                f"{p['memory'] / GIB:.0f}",
                f"{a * 1e3:,.0f} to {b * 1e3:,.0f} ms",
                f"{m:.0%} to {n:.0%}",
                f"{p['compile_s']:.0f} s",
            )
        )
    return "\n".join(f"| {' | '.join(r)} |" for r in rows)
