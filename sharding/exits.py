"""Exit codes of a run, by which launchers, schedulers and hosts decide what follows. No jax here."""

FINAL = (0, 2, 3)  # done, bad config or input, every trial diverged: never begun again
INTERRUPTED = 75  # the same command goes on from the last saved step, and is begun again at no charge
