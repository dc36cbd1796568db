"""Settings for every test, made before jax starts."""

import os

# most of a test is compiling; unoptimised code compiles in less than half the time and the matmuls are library calls either way
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # as `lab` gives every core a device, so that trials take turns on more than one
