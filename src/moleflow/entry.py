"""Entry point of the `moleflow` command; it imports nothing before it can be interrupted."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C while that is still being imported is one sentence as well."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("Error: interrupted", file=sys.stderr)
        sys.exit(130)
