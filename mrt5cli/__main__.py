"""The `mrt5` command and `python -m mrt5cli`: installs signal handlers before anything else is imported."""

import signal

from mrt5cli import stopping


def main() -> None:
    """Run the command line; a signal before or after it ends the process at once."""
    for number in stopping.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stopping.end_at_once)
    from mrt5cli.cli import main as command

    command()


if __name__ == "__main__":
    main()
