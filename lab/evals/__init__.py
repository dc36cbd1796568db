"""Judges of trained models, one file each."""
