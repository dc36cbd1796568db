"""Judges of samples, one file each with a class Judge, and the measures they are made of; numpy and scipy only."""
