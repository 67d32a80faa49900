# SPDX-License-Identifier: Apache-2.0
"""Which quantised checkpoints are read: those that NVIDIA's ModelOpt made in fp8. Their config files say it.

`export_hf_checkpoint` writes `quantization_config` into config.json, in older versions `hf_quant_config.json` beside
it. diffusers writes `quantization_config` as well, but names the algorithm `quant_type` instead of `quant_algo`.
`scaled_fp8` describes what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vorta_trt.model.configs import read_json
from vorta_trt.model.errors import CheckpointError

QUANTISATION = "quantization_config"
_BESIDE = "hf_quant_config.json"
_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")


def is_model_opt(config: Mapping[str, Any], file: Path) -> bool:
    """Whether a checkpoint's weights are ModelOpt's, in fp8.

    Args:
        config: Config of the transformer.
        file: File that the config was read from.

    Raises:
        CheckpointError: The weights are quantised otherwise.
    """
    said, where = config.get(QUANTISATION), file
    if said is None:
        where = file.with_name(_BESIDE)
        if not where.is_file():
            return False
        content = read_json(where, "ModelOpt's description of a quantised checkpoint")
        said = {"quant_method": "modelopt", **_mapping(content.get("quantization"))}
    entry = _mapping(said)
    method = entry.get("quant_method") if entry else said
    algorithm = entry.get("quant_algo") or entry.get("quant_type")
    if method != "modelopt" or algorithm not in _ALGORITHMS:
        what = f"{method!r}" if algorithm is None else f"{method!r}, {algorithm!r}"
        raise CheckpointError(
            f"{where}: {QUANTISATION} {what} says that the weights are quantised; of such checkpoints those of "
            f"'modelopt' with {' or '.join(map(repr, _ALGORITHMS))} are routed; use one of them, or the checkpoint in "
            f"bfloat16, float16 or float32"
        )
    return True


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
