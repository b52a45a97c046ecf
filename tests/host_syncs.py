"""What makes the CPU wait for a GPU, found without one: the device ``meta`` stands for it, which has no values."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class HostSyncs(TorchDispatchMode):
    """Notes copies between the CPU and ``meta`` that block, and tensors of one that index those of the other.

    A value that is asked for, as by ``item`` or ``bool``, raises an exception of torch.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self._made = _MadeThere(self.found)

    def __enter__(self):
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_to_copy" and args[0].device != outputs.device and not kwargs.get("non_blocking"):
            self.found.append(f"copy of {tuple(outputs.shape)}")
        if name == "copy_" and args[0].device != args[1].device and not (args[2:] or [kwargs.get("non_blocking")])[0]:
            self.found.append(f"copy of {tuple(outputs.shape)}")
        if name in ("index", "index_put", "index_put_") and args[0].device == META:
            self.found += ["index on the CPU" for one in args[1] if one is not None and one.device != META]
        return outputs


class _MadeThere(TorchFunctionMode):
    """Notes tensors that are made of numbers, and copied to ``meta``."""

    def __init__(self, found):
        self._found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        is_made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if is_made and outputs.device == META:
            self._found.append(f"{func.__name__} of numbers")
        return outputs
