# SPDX-License-Identifier: Apache-2.0
"""The operator in standard ONNX operators.

It computes what the kernels compute, in float32 whatever the type of the tensors, and for each head only the branch
that it takes. One loop over blocks of queries serves all branches (`branch_policies`), so that no S x S matrix exists.
Text rows join every block's keys, and attend themselves to every key of the branch.

The functions are traced by onnxscript: a nested function is the body of a `Scan` or a branch of an `If`.

Letters: B batch, S video tokens, T text tokens, N heads, D head dimension.
"""

# mypy: ignore-errors
# (onnxscript reads these functions, Python never runs them: their operators and closures make ONNX nodes)

from __future__ import annotations

from typing import Sequence  # noqa: UP035  (onnxscript takes collections.abc's for a class on Python 3.10)

from onnxscript import FLOAT, INT64, graph, script
from onnxscript import opset23 as op

from vorta_trt.export.branch_policies import (
    VORTA,
    boxes_along,
    centres_of_boxes,
    filled,
    in_blocks,
    kept_by_box,
    place_by_box,
    policy,
    rows_by_box,
    window_visits,
)


@script(VORTA, default_opset=op)
def attend(query: FLOAT, key: FLOAT, value: FLOAT, scale: FLOAT) -> FLOAT:
    """softmax(query key^T * scale) value, [rows, D] on [keys, D]."""
    return op.MatMul(op.Softmax(op.MatMul(query * scale, op.Transpose(key, perm=[1, 0])), axis=-1), value)


@script(VORTA, default_opset=op)
def attend_by_policy(
    query: FLOAT,
    key: FLOAT,
    value: FLOAT,
    query_rows: INT64,
    key_rows: INT64,
    visits: INT64,
    slot: INT64,
    text_start: INT64,
    text_end: INT64,
    scale: FLOAT,
) -> FLOAT:
    """Attention of one head, [S+T, D]; the text tokens are the rows text_start..text_end, those after them get 0."""
    text_keys = op.Slice(key, text_start, text_end, [0])  # [valid text, D]
    text_values = op.Slice(value, text_start, text_end, [0])  # [valid text, D]
    rows_of_head = op.Concat([-1], op.Shape(query, start=1, end=2), axis=0)

    @graph()
    def of_block(rows, groups):
        seen = filled(op.Gather(key_rows, groups))  # [keys]
        return attend(
            op.Gather(query, rows),
            op.Concat(op.Gather(key, seen), text_keys, axis=0),
            op.Concat(op.Gather(value, seen), text_values, axis=0),
            scale,
        )  # [block rows, D]

    blocks = op.Scan(query_rows, visits, body=of_block, num_scan_inputs=2)  # [blocks, block rows, D]
    video = op.Gather(op.Reshape(blocks, rows_of_head), slot)  # [S, D]
    every = filled(key_rows)  # [keys]
    text = attend(
        op.Slice(query, text_start, text_end, [0]),
        op.Concat(op.Gather(key, every), text_keys, axis=0),
        op.Concat(op.Gather(value, every), text_values, axis=0),
        scale,
    )  # [valid text, D]
    padding = op.Shape(query, start=0, end=1) - text_end  # [1]
    return op.Pad(op.Concat(video, text, axis=0), op.Concat([0], padding, axis=0), 0.0, [0])  # [S+T, D]


@script(VORTA, default_opset=op)
def operator(
    query,
    key,
    value,
    routes,
    text_length,
    grid: Sequence[int],
    tile: Sequence[int],
    window: Sequence[int],
    bucket: Sequence[int],
    keep: int,
    coreset_keys: str = "query",
    text_tokens: int = 0,
    scale: float = 0.0,
    attention_precision: str = "same",
    plugin_namespace: str = "vorta",
    plugin_version: str = "1",
):
    """The operator on [B, S+T, N, D] of any float type; attributes as in `ROUTED_ATTENTION`.

    `attention_precision` is not used: it is a permission to kernels, and this form is exact for each of its values.
    """
    grid_size = op.Constant(value_ints=grid)  # [3] tokens
    tile_size = op.Min(op.Constant(value_ints=tile), grid_size)  # [3] tokens
    whole_bucket = op.Constant(value_ints=bucket)  # [3] tokens
    bucket_size = op.Min(whole_bucket, grid_size)  # [3] tokens
    keep_tokens = op.Constant(value_int=keep)
    source = op.Unsqueeze(op.Constant(value_string=coreset_keys), [0])  # [1]
    both_sources = op.Concat(source, op.Constant(value_strings=["key"]), axis=0)  # [2]
    keys_choose = op.Squeeze(both_sources[0:1] == both_sources[1:2])
    video_tokens = op.ReduceProd(grid_size, keepdims=1)  # [1] S
    given_scale = op.Constant(value_float=scale)
    head_dim = op.Cast(op.Squeeze(op.Shape(query, start=3, end=4)), to=1)
    softmax_scale = op.Where(given_scale == 0.0, 1.0 / op.Sqrt(head_dim), given_scale)

    raster = op.Range(0, op.Squeeze(video_tokens), 1)  # [S]
    full_blocks = in_blocks(op.Squeeze(video_tokens))  # [blocks, block rows]
    tile_rows = rows_by_box(grid_size, tile_size)  # [tiles, tile tokens]
    tile_slot = place_by_box(grid_size, tile_size)  # [S]
    seen_by_tile = window_visits(boxes_along(grid_size, tile_size), op.Constant(value_ints=window))  # [tiles, seen]
    bucket_rows = rows_by_box(grid_size, bucket_size)  # [buckets, bucket tokens]
    bucket_slot = place_by_box(grid_size, bucket_size)  # [S]
    bucket_centre = centres_of_boxes(grid_size, bucket_size)  # [buckets]
    bucket_kept = kept_by_box(grid_size, bucket_size, keep_tokens, op.ReduceProd(whole_bucket, keepdims=0))  # [buckets]

    valid_text = op.Clip(op.Cast(text_length, to=7), 0, op.Constant(value_int=text_tokens))  # [B]
    text_ends = op.Unsqueeze(valid_text, [1]) + video_tokens  # [B, 1]

    @graph()
    def of_sample(sample_query, sample_key, sample_value, sample_routes, text_end):
        @graph()
        def of_head(stored_query, stored_key, stored_value, route):
            head_query = op.Cast(stored_query, to=1)  # [S+T, D]
            head_key = op.Cast(stored_key, to=1)  # [S+T, D]
            query_rows, key_rows, visits, slot = policy(
                head_query, head_key, route, raster, full_blocks, tile_rows, tile_slot, seen_by_tile, bucket_rows,
                bucket_slot, bucket_centre, bucket_kept, keys_choose,
            )  # fmt: skip
            attended_head = attend_by_policy(
                head_query, head_key, op.Cast(stored_value, to=1), query_rows, key_rows, visits, slot, video_tokens,
                text_end, softmax_scale,
            )  # fmt: skip
            return op.CastLike(attended_head, stored_query)  # [S+T, D]

        by_head = op.Scan(
            op.Transpose(sample_query, perm=[1, 0, 2]),  # [N, S+T, D]
            op.Transpose(sample_key, perm=[1, 0, 2]),  # [N, S+T, D]
            op.Transpose(sample_value, perm=[1, 0, 2]),  # [N, S+T, D]
            sample_routes,
            body=of_head,
            num_scan_inputs=4,
        )  # [N, S+T, D]
        return op.Transpose(by_head, perm=[1, 0, 2])  # [S+T, N, D]

    attended = op.Scan(query, key, value, routes, text_ends, body=of_sample, num_scan_inputs=5)  # [B, S+T, N, D]
    samples = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(query, start=0, end=1)), 1), [1])  # [B, 1]
    # Overwrites all of its first input. It is here for shape inference, which cannot see through the tables but
    # knows that ScatterND gives its first input's shape.
    return op.ScatterND(query, samples, attended)
