"""`python -m moleflow`, where the script is not on the path."""

from .entry import main

main()
