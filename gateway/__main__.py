"""`python -m gateway` and the console script `webflow-gateway`."""

from __future__ import annotations

from .cli.commands import commands


def main() -> None:
    """Run the command that the command line names."""
    commands()


if __name__ == "__main__":
    main()
