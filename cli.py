# SPDX-License-Identifier: Apache-2.0
"""The command line: the commands in the order that `vorta-trt --help` lists them.

Options in, a room does the work, a table, JSON or one clean error out; see `commands/`.
"""

from __future__ import annotations

# In the order of the list in --help.
# isort: off
from vorta_trt.commands import doctor as doctor
from vorta_trt.commands import demo as demo
from vorta_trt.commands import export as export
from vorta_trt.commands import build as build
from vorta_trt.commands import inspect as inspect
from vorta_trt.commands import verify as verify
from vorta_trt.commands import routes as routes
from vorta_trt.commands import generate as generate
from vorta_trt.commands import compare as compare
from vorta_trt.commands import bench as bench
from vorta_trt.commands import bench_step as bench_step
from vorta_trt.commands import train_router as train_router
from vorta_trt.commands import calibrate as calibrate
from vorta_trt.commands.app import app as app
# isort: on


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="vorta-trt")


if __name__ == "__main__":
    main()
