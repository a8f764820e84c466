"""Formats: how a row of data becomes a prompt and an answer."""
