"""Regularizers: penalties added to what is minimised."""
