"""Weightings: how the gradients of the tasks become one update."""
