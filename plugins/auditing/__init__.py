"""Audits of predictions for bias."""
