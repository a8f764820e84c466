"""Keeping what was learned: penalties and memories."""
