# SPDX-License-Identifier: Apache-2.0
"""Training of routers: a frozen transformer, soft mixtures of the branches, and what goes in and comes out.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.model.training.data import DataError as DataError
    from vorta_trt.model.training.prepare import prepare_data as prepare_data
    from vorta_trt.model.training.run_folder import RunError as RunError
    from vorta_trt.model.training.settings import LossWeights as LossWeights
    from vorta_trt.model.training.settings import TrainingSettings as TrainingSettings
    from vorta_trt.model.training.train import TrainingReport as TrainingReport
    from vorta_trt.model.training.train import train_router as train_router
    from vorta_trt.model.training.trainer import TrainingError as TrainingError

_HOME = {
    "DataError": "data",
    "LossWeights": "settings",
    "RunError": "run_folder",
    "TrainingError": "trainer",
    "TrainingReport": "train",
    "TrainingSettings": "settings",
    "prepare_data": "prepare",
    "train_router": "train",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
