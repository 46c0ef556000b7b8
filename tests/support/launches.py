"""Launches of Triton kernels, recorded instead of run, with the signatures that a Hopper GPU would get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

HOPPER = GPUTarget("cuda", 90, 32)


class _Pointer:
    """A tensor as Triton sees it; memory begins at an aligned address."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 2**31


@dataclass(frozen=True)
class Launch:
    """One launch. Equal keys are one compiled kernel."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any

    @classmethod
    def of(cls, kernel: JITFunction[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
        grid = kwargs.pop("grid")
        kwargs.pop("warmup")
        tensors = tuple(arg for arg in args if isinstance(arg, torch.Tensor))
        given = [_Pointer(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        bound, specialization, options = _binder(kernel)(*given, **kwargs)
        options, signature, constants, attributes = kernel._pack_args(
            _backend(), kwargs, bound, specialization, options
        )
        return cls(kernel, tuple(grid), tensors, signature, constants, attributes, options)

    @property
    def name(self) -> str:
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")

    def constant(self, name: str) -> Any:
        """The value of a constant; None where the kernel has none of this name."""
        names = [param.name for param in self.kernel.params]
        return self.constants.get((names.index(name),)) if name in names else None

    @property
    def key(self) -> str:
        return f"{self.name} {self.signature} {self.constants} {self.attributes} {self.options}"

    def compiled(self) -> CompiledKernel:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=HOPPER, options=self.options.__dict__)


@cache
def _backend() -> Any:
    return make_backend(HOPPER)


@cache
def _binder(kernel: JITFunction[Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = create_function_from_signature(kernel.signature, kernel.params, _backend())
    return made


@contextmanager
def recorded(take: Callable[[Launch], None]) -> Iterator[None]:
    """No kernel runs in here; `take` gets each launch."""

    def run(kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> None:
        take(Launch.of(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield
