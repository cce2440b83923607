"""Stands for a GPU that is not there, so that kernels compile as their launches call them.

For scripts in a process of their own: nothing here is undone, and no kernel runs.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from vidsparse.kernels import dispatch


class Driver:
    """Enough of a driver to compile."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty):
        return "void*"


def pretend(arch, enough=lambda kernel: False):
    """Compile for ``arch`` at every launch, run nothing, and return the list that this fills.

    Each entry holds what one launch may run: a kernel, or the candidates of a tuned one. What a
    launch would write stays zero, and tensors of the CPU say that they are on the GPU. Candidates
    are compiled all where they are seen for the first time, else up to one that is ``enough``.
    """
    triton.runtime.driver.set_active(Driver(arch))  # pyright: ignore[reportArgumentType]
    launches, compile_, seen = [], JITFunction.run, set()

    def compiled(self, *args, grid, warmup, **named):
        return compile_(self, *args, grid=grid, warmup=True, **named)

    def launched(self, *args, **named):
        launches.append((self.__name__, [compiled(self, *args, **named)]))

    def tuned(self, *args, **named):
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        configs = [config.all_kwargs() for config in self.prune_configs(named)]
        form = str((configs, named.get("CHUNK")))  # whole blocks and chunks are two kernels
        all_of_them = form not in seen
        seen.add(form)
        found = []
        for config in configs:
            found.append(compiled(self.fn, *args, **{"warmup": True} | named | config))
            if not all_of_them and enough(found[-1]):
                break
        launches.append((self.fn.__name__, found))

    JITFunction.run, Autotuner.run = launched, tuned
    _on_the_gpu(arch)
    return launches


def _on_the_gpu(arch):
    zeros = torch.zeros
    torch.empty = lambda *shape, pin_memory=False, **named: zeros(*shape, **named)
    torch.empty_like = torch.zeros_like
    torch.Tensor.new_empty = torch.Tensor.new_zeros
    torch.Tensor.is_cuda = property(lambda self: True)  # pyright: ignore[reportAttributeAccessIssue]
    dispatch._interpreted = lambda: True  # nobody then asks for a device of CUDA
    torch.cuda.get_device_capability = lambda device=None: divmod(arch, 10)
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)


def bytes_of_stack(kernel):
    """What its registers did not hold."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(cuobjdump), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.findall(r"STACK:(\d+)", done.stdout + done.stderr)[0])
