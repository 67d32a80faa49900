# SPDX-License-Identifier: Apache-2.0
"""Does an exported file or a built engine compute what the checkpoint computes? Starts in `verify`."""
