"""A scaling laboratory for image generators."""
