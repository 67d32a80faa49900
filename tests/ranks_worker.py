# SPDX-License-Identifier: Apache-2.0
"""Ranks that compute test cases: `python ranks_worker.py DEVICE FOLDER RANKS FIRST PIPE...`; see `ranks.py`.

A process with several pipes imports everything, then forks a process for every pipe: ranks FIRST and so on. Each
receives through its pipe the name of one of `CASES` with arguments, and runs it. The first argument of every case is a
group with the requested number of ranks. Results are numbers, texts and records.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vorta_trt.benchmarks.parallel.rank import measure
from vorta_trt.model import AttentionGeometry, RoutedTransformer, routed_attention
from vorta_trt.model.families import families, get_family
from vorta_trt.model.parallel.attention import HEADS, SAMPLE, TOKENS, sharded_attention
from vorta_trt.model.parallel.group_communicator import GroupCommunicator
from vorta_trt.model.parallel.placement import BranchCosts
from vorta_trt.model.parallel.shards import TokenShards
from vorta_trt.model.parallel.ulysses_attention import gather_tokens, ulysses_attention
from vorta_trt.model.parallel.vae_rows import RowSplit, decoding_rows
from vorta_trt.model.parallel.vae_tiles import decode_in_tiles, shapes_of
from vorta_trt.model.transformer import AttentionMode, routed_class
from vorta_trt.plugins import communicator, load_library
from vorta_trt.runtime.parallel.layout import Layout
from vorta_trt.runtime.parallel.ranks import Ranks
from vorta_trt.runtime.parallel.world import World

TIMEOUT = timedelta(seconds=30)  # how long a rank waits for others that have failed
GROUPS: dict[int, dist.ProcessGroup] = {}  # groups of the first ranks, by their number


def attention(
    group: dist.ProcessGroup,
    geometry: dict[str, Any],
    lengths: list[int] | None,
    orders: list[list[int]],
    heads: int,
    head_dim: int,
    seed: int,
    device: str = "cpu",
) -> list[float]:
    """Largest differences of sharded attention to that of one process, one for every order of heads.

    Exchanges run before and behind the attention, and beside that of half of the heads; on GPUs of NCCL through
    torch.distributed and through the library. On the CPU the operator of exported models computes the same, if the
    group has all processes, for that is the group it takes.
    """
    whole = AttentionGeometry.from_dict(geometry)
    generator = torch.Generator().manual_seed(seed)
    batch = 2
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query, key, value = torch.randn(3, batch, whole.tokens, heads, head_dim, generator=generator).to(device, dtype)
    routes = torch.randint(0, 3, (batch, heads), generator=generator, dtype=torch.int32).to(device)
    text_length = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=device)
    expected = routed_attention(query, key, value, routes, whole, text_length)  # [B, S + T, N, D]
    shards = TokenShards(whole.video_tokens, group.size(), group.rank())
    query, key, value, expected = map(shards.own, (query, key, value, expected))  # [B, R + T, N, D]
    query[:, shards.count : shards.rows] = float("nan")  # padding, that nothing may read
    ways = [{"overlap": overlap} for overlap in (False, True)]
    if device != "cpu" and "nccl" in dist.get_backend_config(group):
        joined = GroupCommunicator.of(load_library(), group, query.device)
        ways += [{**way, "communicator": joined} for way in ways]
    operator = device == "cpu" and group.size() == dist.get_world_size()
    distances = []
    for heads_in_order in orders:
        order = torch.tensor(heads_in_order, device=device)
        found = [sharded_attention(query, key, value, routes, order, whole, group, text_length, **way) for way in ways]
        if operator:
            ranks, order = group.size(), order.int()
            found.append(ulysses_attention(query, key, value, routes, order, whole, ranks, text_length))
        distances.append(max(_largest(sample, expected) for sample in found))
    if operator:
        tokens = torch.randn(batch, whole.video_tokens, 3, generator=generator)
        gathered = gather_tokens(shards.own(tokens).contiguous(), whole.video_tokens, group.size())
        distances[0] = max(distances[0], _largest(gathered, tokens))
    return distances


def _largest(sample: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite if any is NaN."""
    return float((sample - expected).abs().nan_to_num(nan=float("inf")).max())


def steps(
    group: dist.ProcessGroup,
    folder: str,
    router: str,
    geometry: str,
    options: dict[str, Any],
    placement: str,
    block_ops: str,
    seed: int,
    overlap: bool = False,
) -> list[float]:
    """Relative distance of every step's sample to that of one process; on the other ranks, to that of rank 0.

    It is infinite if the routes or the exchanges differ. Routes change between the steps.
    """
    model = load(folder, router, geometry, tuple(options.items()))
    if group.rank() == 0:
        expected = of_one_process(folder, router, geometry, tuple(options.items()), block_ops, seed)
    model.block_ops = block_ops
    model.parallelize(group, placement, overlap=overlap)
    found = []
    assert (model.parallel.exchange, model.parallel.choice.communicator) == ("torch", None)
    of_layer = [HEADS, HEADS, TOKENS, TOKENS] if overlap else [HEADS, TOKENS]
    for step, inputs in enumerate(several_steps(model, seed)):
        model.parallel.watch = exchanges = Exchanges()
        with torch.no_grad():
            sample, routes = model(**inputs)
        first = sample.clone(), routes.clone()
        for tensor in first:
            dist.broadcast(tensor, group=group, group_src=0)
        wanted, wanted_routes = expected[step] if group.rank() == 0 else first
        exchanged = exchanges.names == of_layer * model.num_layers + [SAMPLE]
        same = exchanged and torch.equal(routes, wanted_routes) and sample.shape == wanted.shape
        found.append(float((sample - wanted).norm() / wanted.norm()) if same else float("inf"))
    return found


class Exchanges:
    """Records the names of exchanges; see `Ranks.watch`."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> AbstractContextManager[object]:
        self.names.append(name)
        return nullcontext()


@cache
def of_one_process(
    folder: str, router: str, geometry: str, options: tuple[tuple[str, Any], ...], block_ops: str, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Samples and routes of every step, computed by one process."""
    model = load(folder, router, geometry, options)
    model.block_ops, model.parallel = block_ops, None
    with torch.no_grad():
        return [model(**inputs) for inputs in several_steps(model, seed)]


def several_steps(model: RoutedTransformer, seed: int) -> list[dict[str, Tensor]]:
    """Inputs of three steps: batch 2 routed by the routers, batch 2 with some branches given, batch 1 with others."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.randint(-1, 3, (model.num_layers, model.num_heads), generator=generator, dtype=torch.int32)
    first = model.inputs(2, seed)
    if model.linears is not None:  # a number that fp8 rounds the other way would change a coreset
        given = given.clamp(min=0) // 2 * 2  # full and sliding
        first["route_override"] = given.flip(0)
    return [
        first,
        {**first, "route_override": given},
        {**model.inputs(1, seed + 1), "route_override": given.flip(1)},
    ]


@cache
def load(folder: str, router: str, geometry: str, options: tuple[tuple[str, Any], ...]) -> RoutedTransformer:
    """Loads a model, whose geometry is given as JSON."""
    own = AttentionGeometry.from_dict(json.loads(geometry))
    return RoutedTransformer.from_pretrained(folder, router, own, **dict(options))


def errors_on_gpus(
    group: dist.ProcessGroup,
    folder: str,
    router: str,
    geometry: str,
    options: dict[str, Any],
    placement: str,
    block_ops: str,
    seed: int,
) -> list[float]:
    """Relative errors in bfloat16 against float32 on the CPU: first of one process on a GPU, then of all together.

    The latter come in all ways to exchange that the group has: torch's and the library's, overlapping or not. Heads are
    full and sliding, since the last bit of a similarity may change a coreset.
    """
    exact = load(folder, router, geometry, ())
    model = load(folder, router, geometry, (("dtype", torch.bfloat16), *options.items())).cuda()
    inputs = exact.inputs(2, seed)
    shape = (model.num_layers, model.num_heads)
    generator = torch.Generator().manual_seed(seed)
    inputs["route_override"] = torch.randint(0, 2, shape, generator=generator, dtype=torch.int32) * 2
    of_dtype = {spec.name for spec in exact.facts().inputs(exact.config) if spec.kind in ("latents", "embedding")}
    rounded = {name: value.bfloat16() if name in of_dtype else value for name, value in inputs.items()}
    on_gpu = {name: value.cuda() for name, value in rounded.items()}
    model.block_ops = block_ops
    with torch.no_grad():
        model.parallel = None
        expected, _ = exact(**{name: rounded[name].float() if name in of_dtype else inputs[name] for name in inputs})
        one, _ = model(**on_gpu)
        samples = [one]
        for exchange, overlap in itertools.product(("torch", "library"), (False, True)):
            if exchange == "library" and "nccl" not in dist.get_backend_config(group):
                continue
            model.parallelize(group, placement, exchange=exchange, overlap=overlap)
            assert model.parallel.exchange == exchange
            samples.append(model(**on_gpu)[0])
        model.parallel = None
    return [float((sample.float().cpu() - expected).norm() / expected.norm()) for sample in samples]


def refusals(group: dist.ProcessGroup, folder: str, router: str, geometry: str) -> dict[str, str]:
    """The error messages of calls that are refused, by what is wrong."""
    model = load(folder, router, geometry, ())
    said = {
        "placement": _said(lambda: model.parallelize(group, "random")),
        "exchange": _said(lambda: model.parallelize(group, exchange="nccl")),
        "library": _said(lambda: model.parallelize(group, exchange="library")),
        "type": _said(lambda: model.parallelize([0, 1])),  # type: ignore[arg-type]
        "costs": _said(lambda: model.parallelize(group, costs=BranchCosts(1.0, -1.0, 0.5))),
    }
    alone = dist.new_group([0], use_local_synchronization=True, timeout=TIMEOUT)
    if group.rank() > 0:
        assert alone is None
        said["not in it"] = _said(lambda: model.parallelize(GROUPS[1]))
        said["rows"] = _said(lambda: RowSplit(4, alone, 2, 1))  # type: ignore[arg-type]
        said["tiles"] = _said(lambda: decode_in_tiles(None, lambda: torch.zeros(()), tuple, alone))  # type: ignore[arg-type]
        assert model.parallel is None
    gone = dist.new_group([group.rank()], use_local_synchronization=True, timeout=TIMEOUT)
    dist.destroy_process_group(gone)
    said["destroyed"] = _said(lambda: model.parallelize(gone))
    heads, model.num_heads = model.num_heads, 3
    said["heads"] = _said(lambda: model.parallelize(group))
    model.num_heads = heads
    model.parallelize(group)
    inputs = model.inputs(1)
    said["gradients"] = _said(lambda: model(**inputs))
    with torch.no_grad():
        for mode in (AttentionMode.MIXED, AttentionMode.FULL):
            model.attention_mode = mode
            said[mode.value] = _said(lambda: model(**inputs))
        model.attention_mode = AttentionMode.ROUTED
        model.routed_blocks()[0].observer = print
        said["observer"] = _said(lambda: model(**inputs))
        model.routed_blocks()[0].observer = None
    return said


def communicators(group: dist.ProcessGroup) -> dict[str, Any]:
    """The calls that a stand-in for the library received, and the error message for a group that does not fit."""
    told: list[tuple[str, Any]] = []
    device, library = torch.device("cpu"), load_library()

    def create(library: object) -> bytes:
        return bytes([7]) * communicator.ID_BYTES

    def join(library: object, identity: bytes, ranks: int, rank: int) -> None:
        told.append(("join", (identity[0], ranks, rank)))

    def leave(library: object, ranks: int, abort: bool) -> None:
        told.append(("abort" if abort else "leave", ranks))

    stand_ins = {"create_id": create, "join": join, "leave": leave, "check": lambda library, ranks: None}
    kept = {name: getattr(communicator, name) for name in stand_ins}
    try:
        for name, stand_in in stand_ins.items():
            setattr(communicator, name, stand_in)
        first = GroupCommunicator.of(library, group, device)
        with first.watched():
            told.append(("exchange", group.rank()))
        second = GroupCommunicator.of(library, group, device)
        same = first is second is GroupCommunicator.find(library, group.size(), device)
        del second
        kept_by_first = ("leave", group.size()) not in told
        if group.rank() > 0:  # pretend that its members are other ranks
            first.members = (*first.members[:-1], 99)
        said = _said(lambda: GroupCommunicator.of(library, group, device))
        del first
        gone = GroupCommunicator.find(library, group.size(), device) is None
        last = GroupCommunicator.of(library, group, device)
        last.abort()
        last.abort()
        del last
        held = GroupCommunicator.of(library, group, device)
        if group.rank() == 0:  # on rank 0 it becomes garbage in a cycle; on the others it is freed
            cycle: list[Any] = [held]
            cycle.append(cycle)
            del cycle
        del held
        GroupCommunicator.of(library, group, device)
    finally:
        for name, function in kept.items():
            setattr(communicator, name, function)
    return {"told": told, "said": said, "same": same, "kept": kept_by_first, "gone": gone}


def bench(group: dist.ProcessGroup, what: Any) -> tuple[Any, list[Any]]:
    """Result of `measure` of `bench parallel` for a case and options on this rank, and all messages that it sent."""
    told: list[Any] = []
    world = World(group.rank(), group.size(), torch.device("cpu"), send=told.append)
    return measure(world, what), told


def _said(call: Callable[[], object]) -> str:
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def decoded_rows(
    group: dist.ProcessGroup,
    family: str,
    vae_class: str,
    config: dict[str, Any],
    latents: tuple[int, ...],
    seed: int,
    dtype: torch.dtype,
) -> tuple[float, tuple[int, ...]]:
    """Relative distance of a video that the ranks decode by rows to that of one process, and its shape."""
    import diffusers

    torch.manual_seed(seed)
    vae = getattr(diffusers, vae_class)(**config).eval().to(dtype)
    given = torch.randn(latents, dtype=dtype)
    needing = get_family(family).vae_needs_all_rows
    assert needing is not None
    with torch.no_grad():
        expected = vae.decode(given, return_dict=False)[0]
        split = RowSplit(given.shape[-2], group, group.size(), group.rank())
        with decoding_rows(vae.decoder, split, needing):
            video = split.whole(vae.decode(split.own(given), return_dict=False)[0])
        again = vae.decode(given, return_dict=False)[0]
    assert torch.equal(again, expected), "hooks were left"
    return float((video - expected).norm() / expected.norm()), tuple(video.shape)


def decoded_tiles(
    group: dist.ProcessGroup, folder: str, tiling: dict[str, Any], latents: tuple[int, ...], seed: int
) -> tuple[bool, int, int]:
    """Whether a video decoded by tiles on all ranks equals that of one process; tiles decoded there and here."""
    import diffusers

    index = json.loads((Path(folder) / "model_index.json").read_text())
    vae = getattr(diffusers, index["vae"][1]).from_pretrained(folder, subfolder="vae")
    vae.enable_tiling(**tiling)
    given = torch.randn(latents, generator=torch.Generator().manual_seed(seed))
    decoded: list[int] = []
    vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    with torch.no_grad():
        expected = vae.decode(given, return_dict=False)[0]
        tiles = len(decoded)
        shape_of = shapes_of(3, vae.temporal_compression_ratio, vae.spatial_compression_ratio)
        video = decode_in_tiles(vae, lambda: vae.decode(given, return_dict=False)[0], shape_of, group)
    return torch.equal(video, expected) and bool(expected.std() > 0), tiles, len(decoded) - tiles


def videos(group: dist.ProcessGroup, folder: str, guidance: int, options: dict[str, Any]) -> tuple[int, int, int]:
    """Largest difference of a video's frames, in 1/255, to those of one process; launches on this rank, and there.

    All ranks make the video together, in `guidance` passes at once.
    """
    from vorta_trt.runtime.pipelines.pipeline import VortaPipeline

    def make(ranks: Ranks | None) -> Any:
        geometry = AttentionGeometry.for_video(*options["size"], options["family"])
        model = RoutedTransformer.from_pretrained(folder, geometry=geometry)
        with VortaPipeline.from_pretrained(model, ranks=ranks, strict=True) as pipeline:
            return pipeline("a red wall", seed=7, num_inference_steps=2, **options["params"])

    world = World(group.rank(), group.size(), torch.device("cpu"))
    alone = make(None)
    together = make(Ranks(world, Layout(group.size(), guidance), check_every=1))
    distance = abs(together.frames.astype(int) - alone.frames.astype(int)).max()
    return int(distance), together.launches, alone.launches


def exchanges(group: dist.ProcessGroup, scale: float) -> dict[str, Any]:
    """Results of all that ranks exchange; then the error message where rank 1's latents differ in one bit."""
    world = World(group.rank(), group.size(), torch.device("cpu"), timeout=25)
    ranks = Ranks(world, Layout(world.size, guidance=2), check_every=2)
    assert ranks.passes is not None and ranks.sharing is not None
    patience = [each._get_backend(world.device).options._timeout for each in (ranks.sharing, ranks.passes.group)]
    own = torch.full((1, 2, 3), scale * (world.rank + 1))
    text = {"rows": torch.arange(6.0).view(2, 3), "valid": torch.tensor([True, False])} if world.is_first else None
    found: dict[str, Any] = {
        "patience": [each.total_seconds() for each in patience],
        "gathered": world.gather(world.rank),
        "from the first": world.from_first(world.rank + 7),
        "passes": [sample.unique().tolist() for sample in ranks.passes(own)],
        "text": {name: tensor.tolist() for name, tensor in ranks.from_first(text, world.device).items()},
    }
    latents = torch.ones(1, 4, 2, 2)
    ranks.compare_step(0, latents)
    latents.view(torch.int32)[0, 3, 1, 1] += world.rank == 1
    ranks.compare_step(1, latents)  # this step is not compared
    return {**found, "said": _said(lambda: ranks.compare_step(2, latents))}


CASES = {
    case.__name__: case
    for case in (
        attention,
        steps,
        errors_on_gpus,
        refusals,
        communicators,
        bench,
        decoded_rows,
        decoded_tiles,
        videos,
        exchanges,
    )
}


def serve(connection: Connection, device: str, folder: str, rank: int, ranks: int) -> None:
    """Runs the cases that come through the pipe, until it is told to end."""
    torch.set_num_threads(1)
    backend = "gloo"
    if device == "cuda":
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(rank % gpus)
        backend = "cpu:gloo,cuda:nccl" if ranks <= gpus else "gloo"  # NCCL takes no two ranks on one GPU
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=ranks, timeout=TIMEOUT)
    GROUPS.update((count, dist.new_group(range(count), timeout=TIMEOUT)) for count in range(1, ranks + 1))
    while (told := connection.recv()) is not None:
        name, count, arguments = told
        try:
            answer = True, CASES[name](GROUPS[count], **arguments)
        except Exception:
            answer = False, traceback.format_exc()
        connection.send(answer)
    dist.destroy_process_group()


def serve_until_the_end(connection: Connection, device: str, folder: str, rank: int, ranks: int) -> None:
    """Runs `serve`; also ends if the test process is gone."""
    with suppress(EOFError, ConnectionError):
        serve(connection, device, folder, rank, ranks)


def main() -> None:
    device, folder, ranks, first, *pipes = sys.argv[1:]
    for family in families():  # imports what loading a model needs, once for all ranks
        routed_class(family.name)
        family.diffusers_transformer()
    connections = {int(first) + number: Connection(int(pipe)) for number, pipe in enumerate(pipes)}
    if len(connections) == 1:
        for rank, connection in connections.items():
            serve_until_the_end(connection, device, folder, rank, int(ranks))
        return
    children = []
    for rank, connection in connections.items():
        child = os.fork()
        if child == 0:
            for other in connections.values():
                if other is not connection:
                    other.close()
            try:
                serve_until_the_end(connection, device, folder, rank, int(ranks))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)  # the tests see that the pipe is closed
        children.append(child)
    for connection in connections.values():
        connection.close()
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
