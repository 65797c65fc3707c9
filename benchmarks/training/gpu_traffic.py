"""Bytes through memory and kernels of one training step as a GPU runs it, counted from traced graphs. It needs no GPU.

    python benchmarks/training/gpu_traffic.py [--tokens 98304] [--looped] [--plain] [--before CHANGE] [--set KEY=VALUE]

Every part that `paths.use_graph` compiles on a GPU is traced by torch.compile, forward and backward, and lowered by
inductor, whose own accounting (`GraphLowering.count_bytes`) gives the bytes and kernels of each fused graph; what runs
between the compiled parts is counted operation by operation, inputs and outputs. Attention and matrix products count
their inputs and outputs; attention is an opaque operation. Two small batches (1 and 2 sequences) of bfloat16 on the CPU
give the straight line by which the counts are taken to the size of a GPU's batch. Caches count nothing, so times from
the bandwidth are what such kernels take on an H100 at best (2.6 TB/s of its 3.35 are reached in practice).

The optimizer and averages are counted at the model's own size. `--before` counts the step as it was before a change:
U-Net joins between compiled blocks, the loss's softmax with a scatter, embedding and end operation by operation.
"""

import argparse
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from pgolf import config as configs
from pgolf.config import Config
from pgolf.evaluate.ttt.lora import Adapters
from pgolf.model import attention, loss, paths
from pgolf.model.flops import training_flops_per_token
from pgolf.model.gpt import GPT
from pgolf.model.skips import join
from pgolf.optim.average import Averages
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.optimizer import Optimizer
from pgolf.runtime import Runtime

VIEWS = {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice",
         "select", "split", "split_with_sizes", "unbind", "as_strided", "alias", "detach", "view_as", "unflatten",
         "empty", "empty_like", "new_empty", "resize_", "lift_fresh"}  # fmt: skip
"""Operations that move nothing."""
GPU = Runtime(torch.device("cuda"), torch.bfloat16, 0, 1, 1, compile=True)
CHANGES = ("joins", "softmax", "ends")
LENGTH = 64  # tokens of a counted sequence: with attention opaque, bytes per token do not depend on it


class Traffic:
    """Bytes and kernels by what caused them."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.part = ""

    def add(self, what: str, bytes_moved: float, kernels: float = 1) -> None:
        self.bytes[what] += bytes_moved
        self.kernels[what] += kernels


class Eager(TorchDispatchMode):
    """Counts every operation that runs outside compiled parts; `inside` those are skipped."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic, self.inside = traffic, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self.inside and name not in VIEWS:
            moved = sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            if name in ("mm", "addmm", "addmm_", "bmm"):
                self.traffic.add(f"{self.traffic.part}: matrix products", moved)
            else:
                self.traffic.add(f"{self.traffic.part}: eager", moved)
        return result


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() if 0 not in tensor.stride() else tensor.element_size()


def counting(eager: Eager) -> Callable[..., Any]:
    """A backend for torch.compile that lowers with inductor, runs plainly, and adds to the traffic at every call."""

    def inner(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Callable[..., Any]:
        plain = copy.deepcopy(graph)
        compile_fx.view_to_reshape(graph)
        fake_mode = compile_fx.fake_tensor_prop(graph, inputs)
        compile_fx.record_original_output_strides(graph)
        with V.set_fake_mode(fake_mode):
            compile_fx._recursive_post_grad_passes(graph, is_inference=False)
            backward = bool(options.get("is_backward"))
            lowering = GraphLowering(graph, inputs, shape_env=fake_mode.shape_env, is_backward=backward)
            with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
                lowering.run(*inputs)
                lowering._update_scheduler()
                moved, kernels = lowering.count_bytes()[0], len(lowering.scheduler.nodes)

        def run(*given: Any) -> Any:
            eager.traffic.add(
                f"{eager.traffic.part}: compiled, {'backward' if backward else 'forward'}", moved, kernels
            )
            eager.inside += 1
            try:
                return plain.forward(*given)
            finally:
                eager.inside -= 1

        return make_boxed_func(run)

    return lambda graph, inputs: compile_fx.compile_fx(graph, inputs, inner_compile=inner)


@torch.library.custom_op("pgolf_traffic::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.clone()


@torch.library.custom_op("pgolf_traffic::attend_backward", mutates_args=())
def attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return grad.clone(), k.clone(), v.clone()


attend.register_fake(lambda q, k, v: torch.empty_like(q))
attend_backward.register_fake(lambda grad, q, k, v, y: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)))
attend.register_autograd(
    lambda ctx, grad: attend_backward(grad.contiguous(), *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


def unseen(part: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled part that runs outside the counting mode, in which torch.compile would fall back to plain torch."""

    def run(*given: Any) -> Any:
        with _disable_current_modes():
            return part(*given)

    return run


@contextmanager
def counted_compilation(eager: Eager) -> Iterator[None]:
    """torch.compile counts what it compiles, inside the block."""
    original = torch.compile
    torch.compile = lambda part, dynamic=None: unseen(original(part, backend=counting(eager), dynamic=dynamic))
    try:
        yield
    finally:
        torch.compile = original


def scoring(config: Config, rows: int, compiled: bool) -> Traffic:
    """What scoring the last `LENGTH / 32` positions of so many windows of `LENGTH` tokens moves."""
    torch._dynamo.reset()
    model = GPT(config.model).eval()
    model.compute_dtype = torch.bfloat16
    traffic, last = Traffic(), LENGTH // 32
    traffic.part = "scoring"
    eager = Eager(traffic)
    if compiled:
        with counted_compilation(eager):
            paths.scoring_graph(model, GPU, (rows, LENGTH, last))
    tokens = torch.randint(3, config.model.vocab_size, (rows, LENGTH))

    @torch.no_grad()
    def work() -> None:
        model.hidden_losses(model.hidden(tokens, last).flatten(0, 1), tokens[:, -last:].flatten())

    work()  # compiles
    traffic.bytes.clear(), traffic.kernels.clear()
    with eager:
        work()
    return traffic


def adapting(config: Config, documents: int, length: int) -> Traffic:
    """What one step of the adapters moves, operation by operation: so many documents with a context of `length`."""
    model = GPT(config.model).eval().requires_grad_(False)
    model.compute_dtype = torch.bfloat16
    adapters = Adapters(model, documents, config.ttt, torch.device("cpu"))
    optimizer = torch.optim.AdamW(adapters.parameters, config.ttt.lora_lr, (0.0, 0.99), foreach=True)
    traffic = Traffic()
    traffic.part = "adapting"
    tokens, chunk = torch.randint(3, config.model.vocab_size, (documents, length)), config.ttt.chunk_tokens
    with adapters.active(), Eager(traffic):
        hidden = model.hidden(tokens, chunk)
        logits = model.logits(hidden) + adapters.on_logits(hidden)
        F.cross_entropy(logits.flatten(0, 1), tokens[:, -chunk:].flatten()).backward()
        optimizer.step()
    return traffic


def as_before(model: GPT, change: str) -> None:
    """Undo one of the changes to a model's compiled parts."""
    assert model.compiled is not None
    if change == "ends":
        model.compiled = model.compiled._replace(embedded=model.embedded, closed=model.closed)
    elif change == "joins":

        def block_after(block: Callable[..., Any]) -> Callable[..., Any]:
            def run(x: Tensor, step: Any, view: Any, values: Any, last: int = 0, skip: Any = None) -> Any:
                return block(x if skip is None else join(x, skip), step, view, values, last)

            return run

        def lanes_after(route: Any, block: Any, a: Tensor, *rest: Any) -> Any:
            *given, skip = rest
            return advance(route, block, a if skip is None else join(a, skip), *given)

        advance = model.compiled.advance
        model.compiled = model.compiled._replace(
            blocks=[block_after(block) for block in model.compiled.blocks], advance=lanes_after
        )


def step(config: Config, rows: int, looped: bool, compiled: bool, before: str = "") -> tuple[Traffic, Traffic]:
    """What forward and backward of so many sequences move, and what the rest of the step does."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = GPT(config.model).train()
    model.compute_dtype = torch.bfloat16
    flat = FlatParameters(model, parameter_groups(model, model.matrix_roles()))
    optimizer, averages = Optimizer(flat, config.optim), Averages(flat.data, config.average)
    passes, rest = Traffic(), Traffic()
    passes.part, rest.part = "passes", "optimizer and averages"
    eager = Eager(passes)
    if compiled:
        with counted_compilation(eager):
            paths.use_graph(model, GPU)
            as_before(model, before)
    model.set_looped(looped)
    tokens = torch.randint(3, config.model.vocab_size, (rows, LENGTH))
    model.loss(tokens, tokens).backward()  # compiles
    flat.zero_grad()
    passes.bytes.clear(), passes.kernels.clear()
    with eager:
        model.loss(tokens, tokens).backward()
    with torch.no_grad(), Eager(rest):
        flat.zero_grad()
        optimizer.clip()
        optimizer.step(10, 0.5)
        averages.update(0.5)
    return passes, rest


def as_on_a_gpu() -> None:
    """Make attention opaque and the loss's chunks as large as a GPU's."""
    torch.set_num_threads(1)
    attention.attend = lambda q, k, v, view, native=False: attend(q, k, v)
    loss.CHUNK_TOKENS = 1 << 20  # a GPU takes 16,384 tokens at once
    torch._dynamo.config.recompile_limit = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="record")
    parser.add_argument("--tokens", type=int, default=98_304, help="of one pass on one GPU")
    parser.add_argument("--bandwidth", type=float, default=2.6, help="TB/s")
    parser.add_argument("--plain", action="store_true", help="without torch.compile")
    parser.add_argument("--before", default="", choices=CHANGES, help="count the step as it was before this change")
    parser.add_argument("--looped", action="store_true", help="count the looped step only")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    as_on_a_gpu()
    if options.before == "softmax":
        torch.compiler.is_compiling = lambda: False  # the branch that scatters
    config = configs.load(options.preset, None, options.settings)
    for looped in [options.looped] if options.looped else [False, True][: 1 + (config.model.loop_passes > 1)]:
        small, rest = step(config, 1, looped, not options.plain, options.before)
        large, _ = step(config, 2, looped, not options.plain, options.before)
        more = options.tokens / LENGTH - 1  # sequences beyond the first
        total, lines = 0.0, []
        for part in sorted(large.bytes):
            moved = small.bytes[part] + more * (large.bytes[part] - small.bytes[part])
            total += moved
            lines.append(f"{part:40} {moved / 1e9:8.2f} GB {large.kernels[part]:7.0f} kernels")
        for part in sorted(rest.bytes):
            total += rest.bytes[part]
            lines.append(f"{part:40} {rest.bytes[part] / 1e9:8.2f} GB {rest.kernels[part]:7.0f} kernels")
        model = GPT(dataclasses.replace(config.model))
        model.train()
        model.set_looped(looped)
        flops = options.tokens * training_flops_per_token(model, config.train.seq_len)
        print(f"{options.preset}, {options.tokens:,} tokens, {'looped' if looped else 'before looping'}")
        print("\n".join(lines))
        print(
            f"{'all':40} {total / 1e9:8.2f} GB = {total / options.bandwidth / 1e9:.1f} ms at {options.bandwidth} TB/s; "
            f"{flops / 1e12:.1f} TFLOP\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
