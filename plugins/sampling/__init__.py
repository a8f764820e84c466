"""Samplers and row choosers: which rows a step takes."""
