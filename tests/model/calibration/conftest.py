# SPDX-License-Identifier: Apache-2.0
"""One thread, as in the tests of training: at this size, threads wait for each other most of the time."""

from __future__ import annotations

from ..training.conftest import one_thread as one_thread
