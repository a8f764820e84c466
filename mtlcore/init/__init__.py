"""A first recipe for files of rows: which tasks they are, and how their rows are read."""
