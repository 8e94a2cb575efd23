"""`tinyvit-edge` and `python -m tinyvit_edge`."""

from __future__ import annotations

import logging
import signal
import sys

from tinyvit_edge.errors import TinyVitEdgeError

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; an expected error is one line on stderr and its exit code."""
    from tinyvit_edge.cli import app

    # ended from outside as from the keyboard: children are ended, unfinished output is removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    # transformers imports torchao where it is installed, which warns that it has no GPU
    # libraries and about its own use of torch; neither is of use to whoever types a command
    for noisy in ("torchao", "torch.utils._pytree"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app(prog_name="tinyvit-edge")
    except TinyVitEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # typer turns Ctrl-C into this, and says nothing
            print("interrupted: bundles that were finished are whole", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
