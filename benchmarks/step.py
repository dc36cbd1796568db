"""A train step of the lab's DiT against plain eager PyTorch: `lab bench step`.

Three contestants at the quickstart's shape: the lab's program of one trial, an eager PyTorch DiT with as many parameters, and the
lab's program of 8 trials, counted per trial. All do a rectified-flow loss, its gradient, Adam and an average of the weights on
the same batch in float32. They take turns, each in its own process; a ratio is formed within a round. PyTorch uses one core or all
of them, whichever is faster at that shape. On a busy machine its threads wait for each other: measure on a quiet one.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import _common
import _turns

SHAPES = ((64, 4), (128, 4), (256, 4), (64, 2), (128, 2), (256, 2))  # width, patch: 16 and 64 tokens


def spec(name: str, width: int, patch: int, trials: int = 1, fused: bool = False) -> dict:
    """What a contestant's process is told."""
    return {"name": name, "width": width, "patch": patch, "trials": trials, "fused": fused}


def lab(s: dict):
    """The lab's compiled step for s['trials'] trials: what it is, and run(steps)."""
    import jax

    from lab import cost

    jax.config.update("jax_enable_compilation_cache", False)
    config = _turns.config(**{"model.width": s["width"], "model.patch": s["patch"]})
    pop = _turns.population(config, s["trials"])
    at = {"carry": pop.init()}
    pop.compile(at["carry"])
    batch = pop.put(pop.example_batch())

    def run(steps):
        for _ in range(steps):
            at["carry"], values = pop.step(at["carry"], pop.hyper, batch)
        jax.block_until_ready((at["carry"], values))

    about = {"parameters": sum(cost.parameters(pop.program.model).values()), "compile_s": round(pop.compile_s, 2)}
    return about | {"flops_step": pop.flops() * config["train"]["batch"] * s["trials"], "bytes": pop.bytes}, run


def peer(s: dict):
    """The PyTorch peer: what it is, and run(steps)."""
    import _peer
    import torch

    from lab import population

    torch.manual_seed(0)
    config = _turns.config(**{"model.width": s["width"], "model.patch": s["patch"]})
    dims = population.build(config, _turns.Noise.dims).dims
    model = _peer.DiT(
        **dict(width=dims["embed"], depth=dims["layers"], head_dim=dims["head_dim"], mlp_ratio=dims["mlp"] // dims["embed"]),
        **dict(patch=dims["patch_side"], **_turns.Noise.dims, qk_norm=config["model"]["qk_norm"]),
    )
    params = list(model.parameters())
    average, keep = [p.detach().clone() for p in params], config["optim"]["ema"]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=s["fused"])
    batch = _turns.Noise.batch(config["train"]["batch"])
    image, label = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2), torch.from_numpy(batch["label"])

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            _peer.loss(model, image.float() / 127.5 - 1.0, label).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1 - keep)

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


def duel(width: int, patch: int, args: argparse.Namespace) -> dict:
    """All contestants of one shape, `args.rounds` rounds."""
    me = str(Path(__file__).resolve())
    specs = [spec("lab", width, patch), spec("torch", width, patch, fused=args.fused), spec("population", width, patch, args.trials)]
    seconds: dict[str, list[float]] = {s["name"]: [] for s in specs}
    with _turns.Child(me, specs[0]) as a, _turns.Child(me, specs[1]) as b, _turns.Child(me, specs[2]) as c:
        assert a.about["parameters"] == b.about["parameters"] == c.about["parameters"], (a.about, b.about)
        steps = {}
        for child in (a, b, c):
            child.run(3)
            steps[child.name] = max(2, round(args.seconds / child.run(3)))
        for i in range(args.rounds):
            for child in [a, b, c][:: 1 if i % 2 else -1]:  # nobody is always first after a pause
                seconds[child.name].append(child.run(steps[child.name]))
        about = {x.name: x.about for x in (a, b, c)}
    each = [x / args.trials for x in seconds["population"]]
    tokens = (_turns.Noise.dims["image"] // patch) ** 2
    row = {"width": width, "tokens": tokens, "parameters": about["lab"]["parameters"], "steps_a_turn": steps, "about": about}
    row |= {"lab_ms": 1e3 * median(seconds["lab"]), "torch_ms": 1e3 * median(seconds["torch"]), "population_ms_a_trial": 1e3 * median(each)}
    row["ratio"] = _common.spread([x / y for x, y in zip(seconds["lab"], seconds["torch"], strict=True)])
    row["ratio_a_trial"] = _common.spread([x / y for x, y in zip(each, seconds["torch"], strict=True)])
    return row | {"rounds_ms": {k: [round(1e3 * x, 4) for x in v] for k, v in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench step", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--trials", type=int, default=8, help="trials of the population (default: 8)")
    parser.add_argument("--widths", type=int, nargs="*", help="only these widths")
    parser.add_argument("--tokens", type=int, nargs="*", help="only these numbers of tokens (16, 64)")
    parser.add_argument("--fused", action="store_true", help="give the peer torch's fused AdamW")
    parser.add_argument("--out", help="folder for the JSON (default: benchmarks/results)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        s = json.loads(args.serve)
        _turns.serve(*(peer if s["name"] == "torch" else lab)(s))
        return
    _turns.need_torch("step")
    _turns.warn_if_busy()
    os.environ["JAX_PLATFORMS"] = "cpu"  # where both sides run; children inherit it
    rows = []
    for width, patch in SHAPES:
        tokens = (_turns.Noise.dims["image"] // patch) ** 2
        if width in (args.widths or [width]) and tokens in (args.tokens or [tokens]):
            _common.say(f"width {width}, {tokens} tokens: compiling, then {args.rounds} rounds of three turns of {args.seconds:g} s")
            rows.append(duel(width, patch, args))
            _common.say(f"  lab {rows[-1]['lab_ms']:.2f} ms, torch {rows[-1]['torch_ms']:.2f} ms, ratio {rows[-1]['ratio'][0]:.2f}")
    shown = [("width", "tokens", "parameters", "lab ms", "torch ms", "lab/torch [quartiles]")]
    shown[0] += (f"of {args.trials}: ms/trial", "/torch [quartiles]")
    for r in rows:
        (m, a, b), (n, c, d) = r["ratio"], r["ratio_a_trial"]
        ms = f"{r['lab_ms']:.2f}", f"{r['torch_ms']:.2f}"
        last = f"{r['population_ms_a_trial']:.2f}", f"{n:.2f} [{c:.2f}, {d:.2f}]"
        shown.append((r["width"], r["tokens"], f"{r['parameters']:,}", *ms, f"{m:.2f} [{a:.2f}, {b:.2f}]", *last))
    print(_turns.table(shown))
    print(f"\nmedian ms a step of {args.rounds} rounds; below 1 the lab is faster; {_turns.cores()} cores, {_turns.processor()}")
    settings = {"rounds": args.rounds, "turn_s": args.seconds, "trials": args.trials, "torch_adamw": "fused" if args.fused else "default"}
    print(_turns.write("step", rows, settings, args.out))


if __name__ == "__main__":
    main()
