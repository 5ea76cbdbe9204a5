"""FlexAttention as the trainer has it compiled for a GPU that is not there: what the tests of it ask, as JSON.

`compiled` traces it on the CPU, gives the graphs to PyTorch's compiler as if they were a GPU's, and turns the Triton
kernels that it writes into machine code. `computed`, with TRITON_INTERPRET=1, runs such kernels on the CPU under
Triton's interpreter. Both replace what asks a driver, so each is a process of its own.
"""

import contextlib
import importlib.util
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.trainer.triton_program import Absent
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._inductor import codecache, compile_fx, config, fx_utils, scheduler
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn.attention import flex_attention as library
from torch.utils._pytree import tree_map
from triton.runtime import driver

from lora_trainer.model import attention, flex
from lora_trainer.model.attention import Kind, segments_of

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SHARED_MEMORY = {86: 101376, 90: 232448}
"""Bytes that a block of an A10 and an H100 may have (CUDA C++ Programming Guide, technical specifications)."""
PACKS = (((258, 3), None), ((5,), 2), ((3, 20), 6))
"""Lengths of rows, of which the first one fills blocks, and the window of a layer."""
Compile = Callable[[Any, Sequence[Any]], Any]


class _KnownError(Exception):
    """The code that the compiler writes is known, and cannot run here."""


def traced(forward: Compile, backward: Compile) -> Any:
    """FlexAttention, whose graphs these compile."""
    # The only part of PyTorch that says no to a CPU.
    library._validate_device = lambda *_: None
    made: Any = aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
    return flex.compiled_by(made)


def heads(heads: Sequence[int], tokens: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys and values."""
    return [torch.randn(1, tokens, count, size).to(dtype).requires_grad_() for count in heads]


def graphs(shape: dict[str, Any]) -> list[tuple[Any, Sequence[Any]]]:
    """The graphs forward and backward of a model's shape."""
    found: list[tuple[Any, Sequence[Any]]] = []

    def keep(graph: Any, inputs: Sequence[Any]) -> Any:
        found.append((graph, inputs))
        return graph

    dtype = getattr(torch, shape["dtype"])
    tables = flex.tables_of((200, 1, 99), None, CPU)
    numbers = {"scaling": repr(shape["size"] ** -0.5), "softcap": shape["softcap"], "small": shape["small"]}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        given = heads(shape["heads"], 300, shape["size"], dtype)
        sinks = torch.zeros(shape["heads"][0], dtype=dtype) if shape["sinks"] else None
        result = traced(keep, keep)(*given, tuple(map(fake.from_tensor, tables)), sinks=sinks, **numbers)
        torch.autograd.backward(result.float().sum())
    return found


@contextlib.contextmanager
def absent_gpu(capability: int) -> Iterator[None]:
    """Within it, the compiler takes this process for one with such a GPU."""
    driver.set_active(Absent(capability))
    major, minor = divmod(capability, 10)
    properties = types.SimpleNamespace(
        name="none",
        major=major,
        minor=minor,
        multi_processor_count=80,
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block_optin=SHARED_MEMORY[capability],
        gcnArchName="",
        total_memory=2**34,
    )
    answers: dict[str, Any] = {"get_device_properties": properties, "current_device": 0}
    own = {"get_device_capability": (major, minor), "_exchange_device": 0, "_maybe_exchange_device": 0}
    own["device_count"] = 1
    interface = {**answers, "is_available": True, "get_compute_capability": capability, "is_bf16_supported": True}
    changes = [(torch.cuda, {**answers, **own}), (CudaInterface, interface), (CudaInterface.Worker, answers)]
    changes += [(scheduler, {"has_triton": True}), (triton_helpers, {"set_driver_to_gpu": None})]
    changes += [(fx_utils.FakeTensorUpdater, {"incremental_update": 0})]
    with contextlib.ExitStack() as stack:
        for place, values in changes:
            for name, value in values.items():
                stack.enter_context(mock.patch.object(place, name, mock.Mock(return_value=value)))
        # No pool of processes, nothing of an earlier test, and kernels that say what they take.
        settings = {"compile_threads": 1, "fx_graph_cache": False, "use_static_triton_launcher": False}
        stack.enter_context(config.patch(settings))
        yield


def on_gpu(graph: Any, inputs: Sequence[Any]) -> tuple[list[Any], Any]:
    """Inputs for a graph of the CPU that has become one of the GPU, and the mode that they are in."""
    mode: Any = detect_fake_mode(inputs)
    with mode:
        given = [
            torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device=GPU)
            if isinstance(one, torch.Tensor)
            else one
            for one in inputs
        ]
    for part in (one for one in graph.modules() if isinstance(one, torch.fx.GraphModule)):
        for node in part.graph.nodes:
            node.args, node.kwargs = tree_map(lambda one: GPU if one == CPU else one, (node.args, node.kwargs))
        part.recompile()
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*given)
    return given, mode


def compile_for(capability: int, shape: dict[str, Any], folder: Path) -> list[tuple[str, int]]:
    """Name and shared memory (bytes) of each kernel that became machine code; the code around them is written to
    `folder`, forward and backward."""
    kernels: list[tuple[str, int]] = []

    def precompile(tuner: Any, *_: Any, **__: Any) -> None:
        for one in tuner.configs if shape["machine_code"] else ():
            found = tuner._precompile_config(one).kernel
            assert found.metadata.target.arch == capability
            assert found.asm["cubin"]
            kernels.append((tuner.fn.__name__, found.metadata.shared))

    right = codecache.PyCodeCache.load_by_key_path

    def load(key: str, path: str, *more: Any, **options: Any) -> Any:
        found = right(key, path, *more, **options)
        if hasattr(found, "call"):
            (folder / names.pop(0)).write_text(Path(path).read_text())
            raise _KnownError
        return found

    names, made = ["forward.py", "backward.py"], graphs(shape)
    with (
        absent_gpu(capability),
        mock.patch.object(CachingAutotuner, "precompile", precompile),
        mock.patch.object(codecache.PyCodeCache, "load_by_key_path", load),
    ):
        for number, (graph, inputs) in enumerate(made):
            given, mode = on_gpu(graph, inputs)
            with tracing(TracingContext(mode)), V.set_fake_mode(mode):
                try:
                    compile_fx.compile_fx_inner(graph, given, is_backward=number == 1)
                except Exception as error:
                    if "_KnownError" not in str(error):
                        raise
    return kernels


class Interpreted:
    """A kernel of the compiler's, which the interpreter runs."""

    count = 0

    def __init__(self, name: str, source: str, folder: Path) -> None:
        # The interpreter has none of libdevice's functions.
        tanh = "@triton.jit\ndef _tanh(x):\n    return 2 * tl.sigmoid(2 * x) - 1\n\n\n@triton.jit\n"
        source = re.sub(r"@triton_heuristics\.\w+\(.*?\n\)\n(?=@triton.jit)", "", source, flags=re.DOTALL)
        source = source.replace("libdevice.tanh(", "_tanh(").replace("@triton.jit\n", tanh, 1)
        Interpreted.count += 1
        path = folder / f"kernel_{Interpreted.count}.py"
        path.write_text(source)
        spec: Any = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.kernel, self.is_template = getattr(module, name), "_tem_" in name

    def run(self, *arguments: Any, stream: Any) -> None:
        """As the code around it starts it."""
        if self.is_template:
            self.kernel[arguments[-3:]](*arguments[:-3])
            return
        names = self.kernel.arg_names
        blocks = {name: 64 if name.startswith("R") else 16 for name in names[len(arguments) :]}
        counts = [arguments[names.index(name)] for name in ("xnumel", "ynumel") if name in names]
        self.kernel[(*(-(-count // 16) for count in counts), 1, 1)[:3]](*arguments, **blocks)


def interpreted(path: Path) -> Compile:
    """A compiler that takes what was compiled, for CPUs."""

    def compile_code(_graph: Any, _inputs: Sequence[Any]) -> Any:
        code = path.read_text()
        for old, new in {
            "async_compile = AsyncCompile()": "async_compile = OWN",
            "empty_strided_cuda(": "empty_strided_cpu(",
            "with torch.cuda._DeviceGuard(0)": "with NOTHING",
            "torch.cuda.set_device(0)": "pass",
            "get_raw_stream(0)": "None",
        }.items():
            code = code.replace(old, new)
        own = types.SimpleNamespace(
            triton=lambda name, source, **_: Interpreted(name, source, path.parent), wait=lambda _: None
        )
        names: dict[str, Any] = {"OWN": own, "NOTHING": contextlib.nullcontext(), "__name__": path.stem}
        exec(compile(code, str(path), "exec"), names)  # noqa: S102 - PyTorch's compiler wrote it

        def call(given: list[Any]) -> Any:
            return names["call"](list(given))

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    return compile_code


def errors_of(shape: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """Of each pack: relative errors of result and gradients, and the largest gradient at another row."""
    forward, backward = (interpreted(folder / name) for name in ("forward.py", "backward.py"))
    compiled, found = traced(forward, backward), list[dict[str, float]]()
    torch.manual_seed(0)
    for lengths, window in PACKS:
        drawn = heads(shape["heads"], sum(lengths), shape["size"], torch.float32)
        given = [one.transpose(1, 2) for one in drawn]
        sinks, softcap = torch.linspace(-1, 1, shape["heads"][0]), float(shape["softcap"])
        kind = Kind(scaling=None, dropout=0.0, window=window, softcap=softcap, sinks=sinks)
        right = attention.row_by_row(attention._explicit, tuple(given), segments_of(lengths, CPU), kind)
        tables = flex.tables_of(lengths, window, CPU)
        with mock.patch.object(flex, "_compiled", return_value=compiled):
            query, key, value = given
            result = flex.attention(query, key, value, tables, scaling=None, softcap=softcap, sinks=sinks)
        weights = torch.randn(right.shape)
        ours, theirs = (torch.autograd.grad(one, given, weights, retain_graph=True) for one in (result, right))
        names = ("result", "queries", "keys", "values")
        pairs = zip(names, (result, *ours), (right, *theirs), strict=True)
        errors = {name: float((one - other).norm() / other.norm()) for name, one, other in pairs}
        weights[:, lengths[0] :] = 0
        leaked = (one[:, :, lengths[0] :] for one in torch.autograd.grad(result, given, weights))
        found.append({**errors, "leaked": max((float(one.abs().sum()) for one in leaked), default=0.0)})
    return found


def main() -> None:
    """Answer what is asked for."""
    what, capability, shape, folder = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
    if what == "compiled":
        print(json.dumps(compile_for(capability, shape, folder)))
    else:
        assert os.environ["TRITON_INTERPRET"] == "1"
        with mock.patch.object(triton_helpers, "set_driver_to_gpu"):
            print(json.dumps(errors_of(shape, folder)))


if __name__ == "__main__":
    main()
