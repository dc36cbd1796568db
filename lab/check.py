"""The coordinate check: does what each weight adds to the network drift with width (Tensor Programs V, arXiv 2203.03466, appendix D.1)?

After a few steps the rms of (W_t - W_0) x_t, each weight's own change of its output, is fitted against width on log axes, seed by
seed. Its slope is 0 where the parametrization is right. The total change of an activation, which is what is usually plotted,
hides a layer that learns too little behind the layers before it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student

from lab import axes, parametrization
from lab.files import write_json
from lab.models import shared
from lab.optim import Hyper
from lab.parametrization import Table
from lab.population import build, hyper, stacked, turns
from lab.probe import probe
from lab.study import Study, held_out, kinds, load, versions
from lab.train import Program, over_trials

RULES: dict[str, Table] = {"mup": parametrization.mup, "standard": parametrization.standard}
BOUND = 0.2  # slopes this small are effects of finite width (docs/design.md, at its end)
LEVEL = 0.95


class Slope(NamedTuple):
    """d log(rms of a weight's own change) / d log(width) of its worst layer, and the half-width of its interval over seeds."""

    value: float
    half: float

    def drifts(self, bound: float = BOUND) -> bool:
        """Whether the whole interval lies beyond the bound."""
        return abs(self.value) - self.half > bound


class Setting(NamedTuple):
    """Widths from the base on, seeds, steps and learning rate of a check."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    seeds: int = 4
    steps: int = 12
    lr: float = 2.0**-9  # far below the best one, where a step is linear: at 2^-7 slopes of up to 0.5 are effects of small widths


def changes(program: Program, config: dict, batches: dict, rules: dict[str, Table], setting: Setting) -> dict[str, np.ndarray]:
    """{weight: rms of (W_t - W_0) x_t, [rule, seed, layer]} after the steps; `batches` [steps, batch, ...] are the same for all.

    Rules are data, so that one program has them all.
    """
    mine = {**config, "optim": {**config["optim"], "lr": setting.lr}}
    rows = [hyper(program, {**mine, "seed": seed}, table) for table in rules.values() for seed in range(setting.seeds)]

    def run(trial: Hyper) -> dict:
        state = program.init(trial)
        end, _ = jax.lax.scan(lambda s, batch: (program.step(s, trial, batch)[0], None), state, batches)
        key, last = jax.random.key(7), jax.tree.map(lambda x: x[-1], batches)
        return probe(lambda p: jnp.mean(program.loss(p, key, last)), end.params, state.params)[1]

    # a program that runs for seconds: compiled in half the time, run in twice
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    found = jax.jit(over_trials(run, (0,), turns(len(rows))), compiler_options=options)(stacked(rows))
    return {name: np.asarray(own).reshape(len(rules), setting.seeds, -1) for name, (_, own) in found.items()}


def slopes(
    config: dict, source_dims: dict[str, int], batches: dict, setting: Setting, rules: dict[str, Table] = RULES, said: Callable = print
) -> dict[str, dict[str, Slope]]:
    """{rule: {weight: slope}} of the config's model, its width running over the setting's; weights that do not move are left out."""
    found = []
    for width in setting.widths:
        said(f"width {width}: {setting.steps} steps of {len(rules) * setting.seeds} trials")
        at = {**config, "model": {**config["model"], "width": width}, "base": {"width": setting.widths[0]}}
        at["optim"] = {**config["optim"], "schedule": "constant", "warmup": 0}
        with shared.rolled():  # a scanned stack compiles faster
            found.append(changes(build(at, source_dims), at, batches, rules, setting))
    x = np.log(np.array(setting.widths) / setting.widths[0])
    out: dict[str, dict[str, Slope]] = {rule: {} for rule in rules}
    for name in found[0]:
        y = np.log(np.stack([f[name] for f in found]) + 1e-12)  # [width, rule, seed, layer]
        if np.all(y < -20):
            continue  # an untrained scale does not move
        per_seed = np.einsum("w,wrsl->rsl", x - x.mean(), y) / np.sum((x - x.mean()) ** 2)
        half = student.ppf((1 + LEVEL) / 2, setting.seeds - 1) * per_seed.std(1, ddof=1) / np.sqrt(setting.seeds)
        mean = per_seed.mean(1)
        for i, rule in enumerate(rules):
            worst = np.argmax(np.abs(mean[i]))
            out[rule][name] = Slope(float(mean[i, worst]), float(half[i, worst]))
    return out


def check(study: Study, setting: Setting, said: Callable = print) -> dict[str, dict[str, dict[str, Slope]]]:
    """`slopes` of every kind of model in a study, on batches of its own held-out data: {arm: {rule: {weight: slope}}}."""
    out = {}
    for arm, config in kinds(study).items():
        n = config["train"]["batch"]
        few = {**config, "eval": {**config["eval"], "examples": n * setting.steps, "batch": n}}
        batches = jax.tree.map(lambda x: jnp.asarray(np.resize(x, (setting.steps, *x.shape[1:]))), held_out(few, study.held))
        out[arm] = slopes(config, study.train.dims, batches, setting, said=said)
    return out


def matrix(files: list[Path], overrides: list[str], setting: Setting, out: str, said: Callable = print) -> list[str]:
    """Check every experiment, with zero gates and without where its model has them, and write all slopes to a file.

    Returns the names of those with a weight that drifts under muP.
    """
    rows, failed = [], []
    for file in files:
        options = load(str(file)).config.model.to_dict()
        for more in ({"zero_gates": gates} for gates in (False, True)) if "zero_gates" in options else ({},):
            study = Study(load(str(file), [*overrides, *(f"--config.model.{k}={v}" for k, v in more.items())]))
            name = " ".join([file.stem, *(f"{k}={v}" for k, v in more.items())])
            said(name)
            models = {arm: config["model"] for arm, config in kinds(study).items()}
            for arm, found in check(study, setting, said).items():
                said(text(found))
                row = {"experiment": name, "arm": arm, "model": models[arm]}
                rows.append(row | {"slopes": {r: {n: list(s) for n, s in f.items()} for r, f in found.items()}})
                failed += [name] * any(s.drifts() for s in found["mup"].values())
    device = jax.devices()[0].device_kind
    write_json(
        path := Path(out.format(device=device.lower().replace(" ", "-"))),
        {"device": device, "versions": versions(), **setting._asdict(), "rows": rows},
    )
    said(f"{len(rows) - len(failed)} of {len(rows)} hold; {path}")
    return failed


def scaled(found: dict[str, Slope], model: Any, table: Table = parametrization.mup) -> list[float]:
    """Slopes of the weights whose step `table` scales with width: those that show whether a check can fail."""
    steps = {name: table(w.arrow).step for name, w in axes.weights(model).items()}
    return [s.value for name, s in found.items() if steps[name.rstrip("'")] not in (0.0, 1.0)]


def text(found: dict[str, dict[str, Slope]], bound: float = BOUND) -> str:
    """A line a weight with its slope under every rule, and a verdict a rule."""
    width = max(map(len, next(iter(found.values()))))
    lines = [" " * width + "".join(f"{rule:>20}" for rule in found)]
    for name in next(iter(found.values())):
        cells = [f"{s.value:+.2f} ± {s.half:.2f}{' !' if s.drifts(bound) else '  '}" for s in (f[name] for f in found.values())]
        lines.append(name.ljust(width) + "".join(f"{c:>20}" for c in cells))
    for rule, by_weight in found.items():
        drifting = [n for n, s in by_weight.items() if s.drifts(bound)]
        worst = max(by_weight.values(), key=lambda s: abs(s.value)).value
        verdict = (
            f"{len(drifting)} of {len(by_weight)} drift: {', '.join(drifting)}" if drifting else f"no weight of {len(by_weight)} drifts"
        )
        lines.append(f"{rule}: {verdict} (worst slope {worst:+.2f}, bound {bound})")
    return "\n".join(lines)
