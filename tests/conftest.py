"""Settings for every test, made before jax starts."""

import os
import shutil
import tempfile
from importlib.metadata import version

# most of a test is compiling. Unoptimised code compiles in less than half the time, and in a third of that by the emitters that later
# jaxlibs have no more; the matmuls are library calls either way. A study that must be bitwise is run as a user's is, too (test_study.py)
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
FLAGS += ["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10.")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what is set here
    os.environ["LAB_TESTS_USER_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([os.environ["LAB_TESTS_USER_FLAGS"], *FLAGS])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # as `lab` gives every core a device, so that trials take turns on more than one
# studies of one shape are compiled once, and nothing is left of an earlier session. Workers share few programs, and jax writes a cache's
# entries where another process may read half of one, so each has a folder
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lab-tests-xla-")


def pytest_unconfigure():
    """The session's cache goes with it."""
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
