"""A train step of a family's model against plain eager PyTorch: `lab bench step --family dit`, another family, or all of them.

Three contestants at the shape of the family's experiment, without its data: the lab's program of one trial, the family's peer
(benchmarks/peers, one file a family) with as many parameters, and the lab's program of 8 trials, counted per trial. All do the same loss,
its gradient, Adam and an average of the weights on the same batch in float32. They take turns, each in its own process; a ratio is formed
within a round. PyTorch uses one core or all of them, whichever is faster at that shape. On a busy machine its threads wait for each other:
measure on a quiet one.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))
import _common
import _turns

from lab.errors import UserError, unknown

# what is measured by default; one family at every number of tokens that its peer has, all of them in some 8 minutes by estimate
ONE, ALL = dict(widths=[64, 128, 256], tokens=None, rounds=15), dict(widths=[64, 256], tokens=[64], rounds=7)


def families() -> list[str]:
    """The families that have a peer."""
    return sorted(p.stem for p in (Path(__file__).parent / "peers").glob("[a-z]*.py"))


def peer_of(family: str) -> ModuleType:
    """The peer of a family: EXPERIMENT, SHAPES, Model, inputs, loss and copy_weights."""
    return importlib.import_module(f"peers.{family}")


def chosen(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Family, width and tokens of every comparison asked for; UserError where a family is unknown or none has such a shape.

    What `args` leaves open is filled in.
    """
    have = families()
    if args.family not in (*have, "all"):
        raise unknown("--family", args.family, [*have, "all"])
    _turns.need_torch("step")
    for key, value in (ALL if args.family == "all" else ONE).items():
        setattr(args, key, getattr(args, key) or value)
    shapes = {f: list(peer_of(f).SHAPES) for f in (have if args.family == "all" else [args.family])}
    found = [(f, w, n) for f, all_of in shapes.items() for n in all_of for w in args.widths if n in (args.tokens or all_of)]
    if not found:
        raise UserError(f"--tokens={args.tokens} fits no peer; expected of {', '.join(f'{f}: {n}' for f, n in shapes.items())}")
    return found


def setting(family: str, width: int, tokens: int) -> tuple[dict, dict]:
    """The config of a comparison and the sizes that its source tells."""
    peer = peer_of(family)
    model, sizes = peer.SHAPES[tokens]
    return _turns.config(peer.EXPERIMENT, **{f"model.{k}": v for k, v in {"width": width, **model}.items()}), sizes


def lab(s: dict):
    """The lab's compiled step for s['trials'] trials: what it is, and run(steps)."""
    import jax

    from lab import cost

    jax.config.update("jax_enable_compilation_cache", False)
    pop = _turns.population(s["config"], s["trials"], _turns.Noise(**s["sizes"]))
    at = {"carry": pop.init()}
    pop.compile(at["carry"])
    batch = pop.put(pop.example_batch())

    def run(steps):
        for _ in range(steps):
            at["carry"], values = pop.step(at["carry"], pop.hyper, batch)
        jax.block_until_ready((at["carry"], values))

    about = {"parameters": sum(cost.parameters(pop.program.model).values()), "compile_s": round(pop.compile_s, 2)}
    return about | {"flops_step": pop.flops() * s["config"]["train"]["batch"] * s["trials"], "bytes": pop.bytes}, run


def build(family: str, config: dict, sizes: dict):
    """The peer of a config; it starts with zero gates, as every experiment here does."""
    options = {k: v for k, v in config["model"].items() if k not in ("name", "zero_gates")}
    return peer_of(family).Model(**options, **sizes)


def peer(s: dict):
    """The PyTorch peer: what it is, and run(steps)."""
    import torch

    torch.manual_seed(0)
    theirs, config = peer_of(s["family"]), s["config"]
    model = build(s["family"], config, s["sizes"])
    params, o = list(model.parameters()), config["optim"]
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(o["b1"], o["b2"]), weight_decay=0.0, fused=s["fused"])
    batch = {k: torch.from_numpy(v) for k, v in _turns.Noise(**s["sizes"]).batch(config["train"]["batch"]).items()}
    batch = {k: v.permute(0, 3, 1, 2) if k == "image" else v.long() for k, v in batch.items()}

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            theirs.loss(model, theirs.inputs(batch)).backward()
            if o["clip"]:
                torch.nn.utils.clip_grad_norm_(params, o["clip"])
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1 - o["ema"])

    tried = {}
    for threads in sorted({1, _turns.cores()}):  # small operations can be faster on one core: the peer gets what suits it best
        torch.set_num_threads(threads)
        run(3)
        times = []
        for _ in range(12):
            start = time.perf_counter()
            run(1)
            times.append(time.perf_counter() - start)
        tried[threads] = median(times)
    torch.set_num_threads(min(tried, key=tried.get))
    ms = {str(k): round(1e3 * v, 3) for k, v in tried.items()}
    return {"parameters": sum(p.numel() for p in params), "threads": torch.get_num_threads(), "ms_by_threads": ms}, run


def duel(family: str, width: int, tokens: int, args: argparse.Namespace) -> dict:
    """All contestants of one shape, `args.rounds` rounds."""
    me, (config, sizes) = str(Path(__file__).resolve()), setting(family, width, tokens)
    shared = {"family": family, "config": config, "sizes": sizes, "fused": args.fused}
    specs = [{"name": n, "trials": t, **shared} for n, t in (("lab", 1), ("torch", 1), ("population", args.trials))]
    seconds: dict[str, list[float]] = {s["name"]: [] for s in specs}
    with _turns.Child(me, specs[0]) as a, _turns.Child(me, specs[1]) as b, _turns.Child(me, specs[2]) as c:
        assert a.about["parameters"] == b.about["parameters"] == c.about["parameters"], (a.about, b.about)
        steps = {}
        for child in (a, b, c):
            child.run(1)
            steps[child.name] = max(1, round(args.seconds / child.run(2)))
        for i in range(args.rounds):
            for child in [a, b, c][:: 1 if i % 2 else -1]:  # nobody is always first after a pause
                seconds[child.name].append(child.run(steps[child.name]))
        about = {x.name: x.about for x in (a, b, c)}
    each = [x / args.trials for x in seconds["population"]]
    row = {"family": family, "width": width, "tokens": tokens, "parameters": about["lab"]["parameters"]}
    row |= {"steps_a_turn": steps, "about": about, "model": config["model"], "source": sizes, "batch": config["train"]["batch"]}
    row |= {"lab_ms": 1e3 * median(seconds["lab"]), "torch_ms": 1e3 * median(seconds["torch"]), "population_ms_a_trial": 1e3 * median(each)}
    row["ratio"] = _common.spread([x / y for x, y in zip(seconds["lab"], seconds["torch"], strict=True)])
    row["ratio_a_trial"] = _common.spread([x / y for x, y in zip(each, seconds["torch"], strict=True)])
    return row | {"rounds_ms": {k: [round(1e3 * x, 4) for x in v] for k, v in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench step", description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="dit", help=f"one of {', '.join(families())}, or all one after the other (default: dit)")
    parser.add_argument("--rounds", type=int, help="(default: 15; of all families 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--trials", type=int, default=8, help="trials of the population (default: 8)")
    parser.add_argument("--widths", type=int, nargs="*", help="widths (default: 64 128 256; of all families 64 256)")
    parser.add_argument("--tokens", type=int, nargs="*", help="numbers of tokens (default: all that a peer has; of all families 64)")
    parser.add_argument("--fused", action="store_true", help="give the peer torch's fused AdamW")
    parser.add_argument("--out", help="folder for the JSON (default: benchmarks/results)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        s = json.loads(args.serve)
        _turns.serve(*(peer if s["name"] == "torch" else lab)(s))
        return
    todo = chosen(args)
    _turns.warn_if_busy()
    os.environ["JAX_PLATFORMS"] = "cpu"  # where both sides run; children inherit it
    rows = []
    for family, width, tokens in todo:
        _common.say(f"{family}, width {width}, {tokens} tokens: compiling, then {args.rounds} rounds of three turns of {args.seconds:g} s")
        rows.append(duel(family, width, tokens, args))
        _common.say(f"  lab {rows[-1]['lab_ms']:.2f} ms, torch {rows[-1]['torch_ms']:.2f} ms, ratio {rows[-1]['ratio'][0]:.2f}")
    shown = [("family", "width", "tokens", "parameters", "lab ms", "torch ms", "lab/torch [quartiles]")]
    shown[0] += (f"of {args.trials}: ms/trial", "/torch [quartiles]")
    for r in rows:
        (m, a, b), (n, c, d) = r["ratio"], r["ratio_a_trial"]
        ms = f"{r['lab_ms']:.2f}", f"{r['torch_ms']:.2f}"
        last = f"{r['population_ms_a_trial']:.2f}", f"{n:.2f} [{c:.2f}, {d:.2f}]"
        shown.append((r["family"], r["width"], r["tokens"], f"{r['parameters']:,}", *ms, f"{m:.2f} [{a:.2f}, {b:.2f}]", *last))
    print(_turns.table(shown))
    print(f"\nmedian ms a step of {args.rounds} rounds; below 1 the lab is faster; {_turns.cores()} cores, {_turns.processor()}")
    settings = {"rounds": args.rounds, "turn_s": args.seconds, "trials": args.trials, "torch_adamw": "fused" if args.fused else "default"}
    print(_turns.write(f"step-{'families' if args.family == 'all' else args.family}", rows, settings, args.out))


if __name__ == "__main__":
    main()
