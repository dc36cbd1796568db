"""Sources: one file each, found by name; loader.py turns one into batches."""
