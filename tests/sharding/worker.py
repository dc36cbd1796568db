"""A process of a run of several: trains a tiny model under each placement and prints what came of it, a JSON a line.

`worker.py PLACEMENTS STEPS JUDGED`, where those of JUDGED are evaluated too; who the others are is in the environment, as for `lab run`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import small

from lab.data.loader import Loader, held_out
from lab.population import Population
from lab.train import Program
from sharding import hosts

PLACEMENTS = {
    "plain": {},
    "plain trials": {},
    "data": {"run.sharding": "replicated"},
    "fsdp": {"run.sharding": "fsdp"},
    "fsdp+tensor": {"run.mesh": {"data": 2, "fsdp": -1, "tensor": 2}},
    "sequence": {"run.mesh": {"data": 2, "sequence": -1}},
    "trials": {"run.sharding": "trials"},
}
LR, BATCH = 2.0**-9, 16


class Unjudged(Program):
    """One whose evaluation says nothing: to compile it is a good part of a placement's time."""

    def evaluate(self, state, key, batches):
        return {}


def train(pop: Population, carry: list, source: small.Source, steps: int, host: tuple[int, int]) -> tuple[list, list]:
    """Losses [steps, trials] from a carry, and the last carry."""
    feed, seen = Loader(source, BATCH, pop.seeds, host=host), []
    for _ in range(steps):
        carry, values = pop.step(carry, pop.hyper, pop.put(next(feed)))
        seen.append(np.asarray(jax.device_get(values["loss"]))[: len(pop.trials)].tolist())
    feed.close()
    return seen, carry


def main(name: str, steps: int, judged: bool) -> dict:
    """What comes of a placement; of `fsdp+tensor` also with a batch of which every process reads the first part, which is wrong."""
    points = [{"optim.lr": LR / 2**i} for i in range(3)] if name.endswith("trials") else [{"optim.lr": LR}]
    group, source = small.trials(points, **PLACEMENTS[name]), small.Source()
    pop = Population(group, source, held_out(group[0].config, source))
    pop.program = pop.program if judged else Unjudged(**vars(pop.program))
    carry = pop.init()
    pop.compile(carry)
    again = [jnp.copy(x) for x in carry] if name == "fsdp+tensor" else None
    seen, carry = train(pop, carry, source, steps, pop.share())
    judged = {k: np.asarray(v)[: len(points)].tolist() for k, v in jax.device_get(pop.evaluate(carry)).items()}
    state = pop.state(carry)
    weights = hosts.fetch(state.params)
    total = [float(np.sum(np.abs(x), dtype=np.float64)) for x in jax.tree.leaves(weights)]
    out = {"name": name, "losses": seen, "judged": judged, "weights": total, "share": pop.share(), "missed": [str(m) for m in pop.missed]}
    out["global"] = all(isinstance(x, jax.Array) and x.shape[0] == len(points) for x in jax.tree.leaves(state))
    if again:
        out["wrong"] = train(pop, again, source, 2, (0, pop.share()[1]))[0]
    return out


if __name__ == "__main__":
    hosts.start()
    for name in sys.argv[1].split(","):
        print(json.dumps(main(name, int(sys.argv[2]), name in sys.argv[3].split(",")) | {"process": jax.process_index()}), flush=True)
    hosts.barrier("the end", 300)
