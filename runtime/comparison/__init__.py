# SPDX-License-Identifier: Apache-2.0
"""How far two sample sets or two settings of one model lie apart. Starts in `compare` and `settings`."""
