# SPDX-License-Identifier: Apache-2.0
"""The command line, `vorta-trt`. It reads options, calls the other packages, and prints a table, JSON or one error.

The commands are in `commands/`, one file each.
"""

from __future__ import annotations

import sys

from vorta_trt.commands.app import app as app
from vorta_trt.commands.interrupts import guard_imports
from vorta_trt.commands.streams import guard_streams


def main() -> None:
    """Entry point of the console script."""
    guard_streams()
    guard_imports()
    try:
        app(prog_name="vorta-trt")
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
