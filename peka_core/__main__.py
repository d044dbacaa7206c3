"""`python -m peka_core` is the `peka` command."""

import sys


def main() -> int:
    """The command line; Ctrl-C while it is still being imported ends as it does later."""
    try:
        from .run import main as command
    except KeyboardInterrupt:
        print("peka: interrupted before anything was done.", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())
