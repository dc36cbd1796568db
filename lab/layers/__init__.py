"""Parts that models are made of: `weight(...)` and einsum, nothing else."""
