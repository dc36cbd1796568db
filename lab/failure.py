"""What becomes of an update that is not finite or spikes: the trial stops, the update is left out, or the trial goes back to a copy.

Optax's `apply_if_finite` sees updates alone: the average of the weights would move on, and it knows neither losses nor spikes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lab.errors import UserError, unknown

POLICIES = ("stop", "skip", "rollback")
SETTLED = 10  # sound updates before a gradient norm is held against their mean
MEMORY = 100  # updates that the running mean of gradient norms goes back, about


class Policy(NamedTuple):
    """'stop': the trial has diverged and keeps its last state. 'skip': the update is left out. 'rollback': the trial goes back to a copy of
    its state, made after every `copy_every` sound updates in a row, and the batches since are left out (as in PaLM, arXiv 2204.02311, 5.1).

    `spike`: an update whose gradient norm is above so many times the running mean counts as one that is not finite; 0: none does.
    `retries`: more updates in a row ('skip') or in all ('rollback') that fail, and the trial has diverged.
    """

    name: str = "stop"
    spike: float = 0.0
    retries: int = 10
    copy_every: int = 100

    def begin(self, trained: tuple) -> Any:
        """What a state holds for this, before the first step; `trained` is what updates change. Nothing for 'stop'."""
        if self.name == "stop":
            return None
        start = {"norm": jnp.float32(0), **{k: jnp.int32(0) for k in ("sound", "failed", "in_a_row")}}
        return start | ({"copy": jax.tree.map(jnp.copy, trained), "age": jnp.int32(0)} if self.name == "rollback" else {})

    def after(self, kept: Any, old: tuple, new: tuple, alive: jax.Array, sound: jax.Array, norm: jax.Array) -> tuple[tuple, Any, Any, dict]:
        """(trained, kept, alive, columns) after an update from `old` to `new` that is finite (`sound`) and whose gradient has a norm."""
        if self.name == "stop":
            alive = alive & sound
            return _chosen(alive, new, old), kept, alive, {}
        if self.spike:
            sound = sound & ((kept["sound"] < SETTLED) | (norm <= self.spike * kept["norm"]))
        count, failed = kept["sound"] + sound, kept["failed"] + ~sound
        in_a_row = jnp.where(sound, 0, kept["in_a_row"] + 1)
        mean = kept["norm"] + jnp.where(sound, norm - kept["norm"], 0.0) / jnp.clip(count, 1, MEMORY)
        then = {"norm": mean, "sound": count, "failed": failed, "in_a_row": in_a_row}
        if self.name == "skip":
            alive = alive & (in_a_row <= self.retries)
            return _chosen(alive & sound, new, old), then, alive, {"skipped": failed}
        alive = alive & (failed <= self.retries)
        age = jnp.where(sound, kept["age"] + 1, 0)
        copy = _chosen(alive & (age == self.copy_every), new, kept["copy"])
        then |= {"copy": copy, "age": jnp.where(age == self.copy_every, 0, age)}
        return _chosen(alive, _chosen(sound, new, kept["copy"]), old), then, alive, {"rollbacks": failed}


STOP = Policy()


def _chosen(which: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(which, x, y), a, b)


def policy(train: dict) -> Policy:
    """The policy of a config's section `train`; UserError for one that there is not, or numbers that it does not read."""
    out = Policy(train["failure"], train["spike"], train["retries"], train["copy_every"])
    if out.name not in POLICIES:
        raise unknown("train.failure", out.name, POLICIES)
    if out.name == "stop" and out.spike:
        raise UserError(f"config key train.spike={out.spike} is not read where train.failure='stop'; expected 'skip' or 'rollback' with it")
    if out.spike and out.spike <= 1:
        raise UserError(f"config key train.spike={out.spike} must be above 1, the mean itself, or 0 for none")
    for key in ("retries", "copy_every"):
        if getattr(out, key) < 1:
            raise UserError(f"config key train.{key}={getattr(out, key)} must be at least 1")
    return out
