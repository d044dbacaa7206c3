"""`python -m peka_core` is the `peka` command."""

import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C during its import ends like a later one."""
    try:
        from .commands.command_line import main as command
    except KeyboardInterrupt:
        print("peka: interrupted before anything was done.", file=sys.stderr)
        return 130
    code = command()
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C changes nothing any more
    return code


if __name__ == "__main__":
    sys.exit(main())
