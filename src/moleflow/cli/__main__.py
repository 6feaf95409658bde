"""`python -m moleflow.cli`."""

from . import main

main()
