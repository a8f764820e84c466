"""Predictions of every row, and the scores that come from them."""
