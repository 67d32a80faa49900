# SPDX-License-Identifier: Apache-2.0
"""The routes of one step as a picture: a row for every layer, a column for every head, a colour for every branch."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vorta_trt.model.geometry import Branch
from vorta_trt.serving.accepted import Accepted
from vorta_trt.serving.api_errors import ApiError
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.job import Job

COLOURS = {Branch.FULL: (214, 69, 65), Branch.CORESET: (66, 133, 200), Branch.SLIDING: (83, 168, 113)}  # RGB
CELL = 8  # pixels of a head, with a gap of one


def routes_picture(catalogue: Catalogue, job: Job, step: int | None = None) -> bytes:
    """The routes of one step as a PNG file.

    Args:
        catalogue: The models, which know the routes before sampling.
        job: The job.
        step: Number of the step in its video, from 0. None is the step that runs, or the last one of a finished job.

    Raises:
        ApiError: There is no such step, or the model's routes are not known.
    """
    accepted = Accepted.from_dict(job.request)
    each = max(1, job.steps // accepted.n)
    if step is None:
        step = each - 1 if job.step and job.step >= job.steps else job.step % each
    if step >= each:
        raise ApiError(404, f"step {step}: there are {each}, from 0 on", "step_not_found", field="step")
    routes = catalogue.get(job.model).plan(accepted.params, accepted.size).steps.routes
    if routes is None:
        raise ApiError(404, f"model {job.model}: does not know its routes; build it again", "routes_unknown")
    layers, heads = routes.routes.shape[1:]
    cells = np.zeros((layers, heads, 3), np.uint8)
    for branch, colour in COLOURS.items():
        cells[routes.takes(branch)[step].numpy()] = colour
    pixels = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)  # [L * CELL, N * CELL, 3]
    pixels[CELL - 1 :: CELL] = pixels[:, CELL - 1 :: CELL] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
