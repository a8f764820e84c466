"""Evaluators: metrics of one task's predictions."""
