"""The original bits of live weights, and what is added to each: W + Σ scale·Δ, every Δ taken from the original W."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from loratools.adapters.addition import Addition, How
from loratools.adapters.change import Change
from loratools.errors import InternalError, NotRepresentable, ResourceError
from loratools.pipelines.originals import InMemory, Original, Shelf, fingerprint
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import Bytes, LazyTensor

if TYPE_CHECKING:
    import torch
    from torch import nn

Keep = Literal["cpu", "file", "none"]

Parts = Mapping[int | None, tuple[Change, ...]]
"""The changes of a parameter: of all of it (None), or of experts by their numbers, where it stacks them."""

LOCK = threading.RLock()
"""Held by whoever changes live weights."""


@dataclass(eq=False)
class Slot:
    """One parameter of a live module that something is added to.

    `shares` are the changes by whoever asked for them, `factors` what each asker's are multiplied by; those of the
    `settled` are to stay. `shared` is the parameter that this module had in common with others, where it had one: it
    gets one of its own meanwhile.
    """

    module: weakref.ref[nn.Module]
    leaf: str
    name: str
    layout: str
    bias: bool
    shared: torch.nn.Parameter | None = None
    original: Original | None = None
    shares: dict[object, Parts] = field(default_factory=dict)
    factors: dict[object, float] = field(default_factory=dict)
    settled: set[object] = field(default_factory=set)
    written: int | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the live parameter."""
        return self.parameter().nbytes

    def parameter(self) -> torch.nn.Parameter:
        """The live parameter; raises NotRepresentable where it has gone, or its values are elsewhere."""
        module = self.module()
        found = module._parameters.get(self.leaf) if module is not None else None
        if found is None or found.is_meta:
            raise NotRepresentable(
                f"{self.name} is not in memory any more", hint="call remove_all_hooks() of the pipeline first"
            )
        return found

    def require_untouched(self) -> None:
        """Raise NotRepresentable where somebody else has changed the weight since; a cast of the model is followed."""
        if self.written is None:
            return
        self.follow()
        if fingerprint(self.parameter()) != self.written:
            raise NotRepresentable(
                f"{self.name} was changed by something else after the adapter was applied",
                key=self.name,
                hint="undo that first (unfuse_lora, …), or remove(force=True) puts the original in its place",
            )

    def follow(self) -> None:
        """Where the model was cast to another dtype meanwhile, the original becomes what it would be by that."""
        live = self.parameter()
        if self.original is None or not live.is_floating_point() or live.dtype == _torch(self.original.dtype):
            return
        self.original = InMemory(self.original.tensor().to(live.dtype))
        self.written = fingerprint(live)

    def hold(self, shelf: Shelf | None) -> None:
        """Keep the original, if it is not kept yet."""
        if self.original is None:
            values = self.parameter().detach().to("cpu").contiguous()
            if shelf is not None:
                self.original = shelf.put(values)
            else:
                same = values.data_ptr() == self.parameter().data_ptr()
                self.original = InMemory(values.clone() if same else values)

    def rewrite(self, *, allow_nonfinite: bool = False) -> None:
        """Make the weight what its shares say, or put the original back where there are none."""
        assert self.original is not None
        if not self.shares:
            self.restore()
            return
        self.follow()
        wanted = self._wanted()
        made = self.original.tensor()
        if None in wanted:
            made = self._sum(None, wanted[None], allow_nonfinite=allow_nonfinite)
        elif wanted:
            made = made.clone()
            for part, changes in wanted.items():
                made[part] = self._sum(part, changes, allow_nonfinite=allow_nonfinite)
        self._write(made)

    def _wanted(self) -> dict[int | None, list[Change]]:
        """The changes of all shares by part, scaled; those that change nothing are left out."""
        found: dict[int | None, list[Change]] = {}
        for key, parts in self.shares.items():
            for part, changes in parts.items():
                for change in changes:
                    scale = change.scale * self.factors[key]
                    if scale != 0:
                        found.setdefault(part, []).append(replace(change, scale=scale))
        return found

    def _sum(self, part: int | None, changes: Sequence[Change], *, allow_nonfinite: bool) -> torch.Tensor:
        """The original of the parameter, or of one expert in it, and the changes."""
        assert self.original is not None
        live, dtype = self.parameter(), self.original.dtype
        shape = tuple(live.shape if part is None else live.shape[1:])
        size = LazyTensor(dtype, shape, ()).nbytes
        source = LiveBytes(self.module, self.leaf, dtype, LazyTensor(dtype, tuple(live.shape), ()).nbytes, self.name)
        device = str(live.device) if live.device.type == "cuda" else "cpu"
        addition = Addition(
            LazyTensor(dtype, shape, (Bytes(source, (part or 0) * size, size),)),
            changes,
            How(device=device, allow_nonfinite=allow_nonfinite),
            name=self.name if part is None else f"{self.name}[{part}]",
            layout=self.layout,
            bias=self.bias,
        )
        return addition.result().load()

    def restore(self) -> None:
        """Put the original back, whatever is there now."""
        assert self.original is not None
        self.follow()
        module = self.module()
        if self.shared is not None and module is not None:
            module._parameters[self.leaf] = self.shared
        else:
            self._write(self.original.tensor())

    def drop_if_settled(self) -> None:
        """Forget the slot where nobody will ask for the original any more."""
        module = self.module()
        if self.shares.keys() <= self.settled and module is not None and module in _SLOTS:
            _SLOTS[module].pop(self.leaf, None)
            if not _SLOTS[module]:
                del _SLOTS[module]

    def _write(self, values: torch.Tensor) -> None:
        import torch

        live = self.parameter()
        if self.shared is not None and live is self.shared:
            own = torch.nn.Parameter(live.detach().clone(), requires_grad=live.requires_grad)
            module = self.module()
            assert module is not None
            module._parameters[self.leaf] = live = own
        with torch.inference_mode(live.is_inference()), torch.no_grad():
            live.copy_(values.reshape(live.shape))
        self.written = fingerprint(live)


_SLOTS: weakref.WeakKeyDictionary[nn.Module, dict[str, Slot]] = weakref.WeakKeyDictionary()


def slot_of(module: nn.Module, leaf: str) -> Slot | None:
    """The slot of a parameter, where something is added to it."""
    return _SLOTS.get(module, {}).get(leaf)


def register(slot: Slot) -> None:
    """Make a slot known."""
    module = slot.module()
    if module is None:
        raise InternalError(f"{slot.name} has gone")
    _SLOTS.setdefault(module, {})[slot.leaf] = slot


@dataclass(frozen=True, slots=True, eq=False)
class LiveBytes:
    """A ByteSource over a live parameter: its original bits, or those it has where nothing is added to it."""

    module: weakref.ref[nn.Module]
    leaf: str
    dtype: str
    size: int
    name: str

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on."""
        room = bytearray(length)
        self.read_into(offset, memoryview(room))
        return bytes(room)

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on; raises ResourceError where the module has gone."""
        module = self.module()
        if module is None:
            raise ResourceError(f"{self.name} has gone with its model")
        slot = slot_of(module, self.leaf)
        original: Original | None = slot.original if slot else None
        if original is None:
            live = module._parameters[self.leaf]
            assert live is not None
            original = InMemory(live.detach().to("cpu").contiguous())
        if original.dtype != self.dtype:  # the model was cast since
            original = InMemory(original.tensor().to(_torch(self.dtype)))
        original.read_into(offset, room)

    def fileno(self) -> None:
        """Memory has no descriptor."""


def _torch(dtype: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, DTYPES[dtype].torch or "")
    return found
