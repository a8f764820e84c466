"""One command for each remedy, run on cases where it is known to help."""
