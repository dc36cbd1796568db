"""Meshes, placement and compiling for a topology; jax only."""
