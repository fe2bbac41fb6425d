"""A GPU that is not there: shapes, types, devices and waits of code for CUDA, without a GPU.

Needs a CUDA build of torch, as on PyPI, and no driver. Tensors are fake: they have no values.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operations whose result the CPU has to know.
READS = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default),
    *(aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
}


class Watch(TorchDispatchMode):
    """Counts, by operation and line of src/, what would make the CPU wait for the GPU."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if "cuda" in devices and (func in READS or is_index_by_mask(func, args)):
            self.waits[f"{func} at {line_of_src()}"] += 1
        if is_blocking_copy(func, args, kwargs):
            self.waits[f"blocking {func} at {line_of_src()}"] += 1
        return func(*args, **kwargs)


def is_index_by_mask(func, args) -> bool:
    if func is not aten.index.Tensor:
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def is_blocking_copy(func, args, kwargs) -> bool:
    """Whether an operation copies between the devices and waits until it is done."""
    if func is aten._to_copy.default or func.name().startswith("aten::to."):
        # In inference mode, Tensor.to is one operation.
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        source, target = args[0].device, torch.device(named.get("device") or args[0].device)
        return source.type != target.type and not named.get("non_blocking")
    if func is aten.copy_.default:
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        return args[0].device.type != args[1].device.type and not non_blocking
    return False


def line_of_src() -> str:
    """Return the innermost line of src/ that is running."""
    for frame in reversed(traceback.extract_stack()):
        if "/src/" in frame.filename and "site-packages" not in frame.filename:
            return f"{frame.filename.rpartition('/src/')[2]}:{frame.lineno} {frame.line}"
    return "a line outside src"


@contextmanager
def fake_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[FakeTensorMode]:
    """Let torch see one GPU of this compute capability, whose tensors are fake."""
    torch._C._ensureCUDADeviceGuardSet()
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "fake",
        "is_bf16_supported": lambda *args, **kwargs: True,
        "is_current_stream_capturing": lambda: False,
    }
    with ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        for name, function in cuda.items():
            patch(torch.cuda, name, function)
        patch(torch.nn.Module, "to", move_module)
        patch(torch.Tensor, "backward", skip_backward)
        patch(torch.Tensor, "__deepcopy__", copy_tensor)
        patch(torch.nn.Parameter, "__deepcopy__", copy_tensor)
        patch(fake_tensor, "init_gpu_context", lambda *args: None)
        patch(FakeTensorMode, "avoid_device_init", property(lambda self: True))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


def move_module(module: torch.nn.Module, *args, **kwargs) -> torch.nn.Module:
    """nn.Module.to for fake tensors, which cannot be swapped in place."""
    device, _, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                moved = tensor.detach().to(device or tensor.device)
                if memory_format and tensor.ndim == 4:
                    moved = moved.contiguous(memory_format=memory_format)
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                tensors[name] = torch.nn.Parameter(moved) if is_parameter else moved
    return module


def copy_tensor(tensor: torch.Tensor, memo: dict) -> torch.Tensor:
    """Tensor.__deepcopy__, which would copy the memory that a fake tensor does not have."""
    copied = tensor.detach().clone()
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied


def skip_backward(loss: torch.Tensor) -> None:
    """Tensor.backward: the autograd engine would ask the driver. The gradients are made by hand."""


__all__ = ["Watch", "fake_gpu"]
