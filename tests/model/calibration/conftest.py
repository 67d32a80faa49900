# SPDX-License-Identifier: Apache-2.0
"""The tests run in one thread, as those of training do: at this size, threads mostly wait for each other."""

from __future__ import annotations

from ..training.conftest import one_thread as one_thread
