"""`python -m mtlcore.cli`, for a source tree that is not installed."""

from mtlcore.cli import main

main()
