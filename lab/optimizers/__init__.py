"""Optimizers, one file each, exporting Optimizer: an optax transformation whose constructor names the keys of `optim` that it reads."""
