"""A scaling laboratory for image generators."""


def __getattr__(name: str):
    """`lab.open`, which reads records without jax; it is imported when it is asked for."""
    if name == "open":
        from lab.opened import open

        return open
    raise AttributeError(f"module 'lab' has no attribute {name!r}")
