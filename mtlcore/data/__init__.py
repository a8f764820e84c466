"""Data: sources, splits, Examples and batches."""
