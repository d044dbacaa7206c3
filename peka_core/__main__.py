"""`python -m peka_core` is the `peka` command."""

import signal
import sys


def main() -> int:
    """The command line; Ctrl-C while it is still being imported ends as it does later."""
    try:
        from .commands.command_line import main as command
    except KeyboardInterrupt:
        print("peka: interrupted before anything was done.", file=sys.stderr)
        return 130
    code = command()
    if code == 130:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # an impatient second Ctrl-C finds the way out already taken
    return code


if __name__ == "__main__":
    sys.exit(main())
