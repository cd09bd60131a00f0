"""What `apply` gives back: an adapter in a live model, whose scale can be changed and which can be taken out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from loratools.errors import LoratoolsError, NotRepresentable, UsageError, nearest
from loratools.operations.application.ways import AppliedModule, InPeft, Ways, scaled
from loratools.operations.merging.result import Applied as Matched
from loratools.operations.merging.scales import Scales
from loratools.operations.working.one_thread import one_thread
from loratools.pipelines.kept import LOCK, Keep, Slot
from loratools.pipelines.originals import Shelf
from loratools.pipelines.peft_layers import eject, inject, require_unmerged, set_scales
from loratools.tensors.writer import Progress

SCHEMA = "loratools.apply/1"

Scale = float | str | Mapping[str, float]
"""A number for all components, or numbers by component: "unet=0.8,text_encoder=0.5", or a mapping."""


class Applied:
    """An adapter that has been applied; in a `with` block it is taken out at the end.

    `name` is its name among PEFT's adapters; `modules` say which way each module went, `left_out` what no weight
    holds (an embedding beside it) or what `allow_partial` left, `scales` the number of every component.
    """

    def __init__(
        self,
        *,
        name: str,
        matched: Matched,
        architecture: str | None,
        ways: Ways,
        scales: Mapping[str, float],
        keep: Keep,
        warnings: Sequence[str],
        threads: int,
        allow_nonfinite: bool,
    ) -> None:
        self.name, self.architecture, self.keep = name, architecture, keep
        self.path, self.format, self.kinds = matched.name, matched.format, matched.kinds
        self.modules: tuple[AppliedModule, ...] = ways.rows
        self.unmatched = matched.unmatched
        self.left_out: tuple[str, ...] = (*matched.left_out, *ways.left_out)
        self.warnings: tuple[str, ...] = tuple(warnings)
        self.removed = False
        self._ways, self._scales = ways, dict(scales)
        self._threads, self._allow_nonfinite = threads, allow_nonfinite
        self._slots: tuple[Slot, ...] = ()
        self._key = object()  # what slots know it by: they must not keep the model alive through it
        self._component: dict[Slot, str] = {}

    @property
    def scales(self) -> dict[str, float]:
        """The number that multiplies the adapter, by component."""
        return dict(self._scales)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The adapters of PEFT's that hold it: none where everything was added in place, or several."""
        return tuple(dict.fromkeys(self._peft_name(item) for item in self._ways.peft))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if self.removed else f"scales {self._scales}"
        return f"<Applied {self.name!r}: {len(self.modules)} modules, {state}>"

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        counts = Counter((row.component, row.way) for row in self.modules)
        return {
            "schema": SCHEMA,
            "name": self.name,
            "path": self.path,
            "format": self.format,
            "architecture": self.architecture,
            "kinds": list(self.kinds),
            "scales": self.scales,
            "keep": self.keep,
            "adapter_names": list(self.adapter_names),
            "counts": [{"component": name, "way": way, "modules": count} for (name, way), count in counts.items()],
            "modules": [row.to_dict() for row in self.modules],
            "unmatched": [item.to_dict() for item in self.unmatched],
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
            "removed": self.removed,
        }

    def set_scale(self, scale: Scale) -> None:
        """Another scale: a number for all, or numbers by component, the others as they are; at 0 nothing is left of it.

        Raises NotRepresentable where the originals were not kept, or something else has changed the weights since, or
        PEFT holds a DoRA (0 and 1 only); UsageError for a component that it does not have. Then nothing is changed.
        """
        with LOCK:
            self._require("its scale cannot be changed")
            before, wanted = self._scales, by_component(scale, self._scales)
            self._require_linear(wanted)
            slots = [slot for slot in self._slots if wanted[self._component[slot]] != slot.factors[self._key]]
            for slot in slots:
                slot.require_untouched()

            def weigh(slot: Slot) -> None:
                slot.factors[self._key] = wanted[self._component[slot]]

            with self._all_or_nothing(slots, weigh):
                try:
                    self._scale_layers(wanted)
                except BaseException:
                    with suppress(LoratoolsError):  # the first one tells what is wrong
                        self._scale_layers(before)
                    raise
            self._scales = wanted

    def remove(self, *, force: bool = False) -> None:
        """Take it out: layers of PEFT's go, weights get their original bits, and what other adapters add to them.

        Once it is out this does nothing. Raises NotRepresentable where the originals were not kept; and where something
        else has changed the weights since, unless `force`, which puts the originals in their place all the same.
        """
        with LOCK:
            if self.removed:
                return
            self._require("it cannot be taken out")
            for slot in () if force else self._slots:
                slot.require_untouched()

            def withdraw(slot: Slot) -> None:
                del slot.shares[self._key], slot.factors[self._key]

            for item in self._ways.peft:
                require_unmerged(item.model, self._peft_name(item))
            with self._all_or_nothing(self._slots, withdraw):
                for item in self._ways.peft:
                    eject(item.model, self._peft_name(item))
            for slot in self._slots:
                slot.drop_if_settled()
            self._slots, self._component, self.removed = (), {}, True

    def enter(self, progress: Progress | None = None) -> None:
        """Do what was planned, all or nothing."""
        self._require_linear(self._scales)
        added = {item.slot(self._ways.shared): item for item in self._ways.weights}
        shelf = Shelf() if self.keep == "file" and added else None

        def share(slot: Slot) -> None:
            slot.hold(shelf)
            slot.shares[self._key] = added[slot].parts
            slot.factors[self._key] = self._scales[added[slot].component]

        begun: list[InPeft] = []
        try:
            for slot in added:
                slot.require_untouched()
            with self._all_or_nothing(tuple(added), share, progress):
                for item in self._ways.peft:
                    begun.append(item)
                    inject(item.model, self._peft_name(item), item.held)
                self._scale_layers(self._scales)
        except BaseException:
            for item in begun:
                eject(item.model, self._peft_name(item))
            for slot in added:
                slot.drop_if_settled()
            raise
        self._slots = tuple(added)
        self._component = {slot: item.component for slot, item in added.items()}
        if self.keep == "none":
            for slot in added:
                slot.settled.add(self._key)
                slot.drop_if_settled()

    def _peft_name(self, item: InPeft) -> str:
        return f"{self.name}_{item.variant}" if item.variant else self.name

    def _require(self, what: str) -> None:
        """Raise where the originals are not there, or the adapter is not."""
        if self.removed:
            raise UsageError(f"{self.name} was taken out: {what}", hint="apply it again")
        if self.keep == "none" and self._slots:
            raise NotRepresentable(
                f"{self.name} was added to {len(self._slots)} weights whose originals were not kept: {what}",
                hint='apply it with keep="cpu" or keep="file"',
            )

    def _require_linear(self, scales: Mapping[str, float]) -> None:
        """Raise NotRepresentable for a scale at which PEFT's DoRA is another change."""
        for item in self._ways.peft:
            for path, scale in scaled(item, scales):
                if "dora" in item.variant and scale not in (0, 1):
                    raise NotRepresentable(
                        f"PEFT holds a DoRA for {path}, which at scale {scale:g} would be another change",
                        key=path,
                        hint='scales 0 and 1, or how="weights"',
                    )

    def _scale_layers(self, scales: Mapping[str, float]) -> None:
        for item in self._ways.peft:
            set_scales(item.model, self._peft_name(item), dict(scaled(item, scales)))

    @contextmanager
    def _all_or_nothing(
        self, slots: Sequence[Slot], edit: Callable[[Slot], None], progress: Progress | None = None
    ) -> Iterator[None]:
        """Edit what is added to some weights and write them; undone where that, or the block, fails."""
        before = [(slot, dict(slot.shares), dict(slot.factors)) for slot in slots]
        begun: set[Slot] = set()
        try:
            for slot in slots:
                edit(slot)
            self._write(slots, begun, progress)
            yield
        except BaseException:
            for slot, shares, factors in before:
                slot.shares, slot.factors = shares, factors
                if slot in begun:
                    slot.rewrite(allow_nonfinite=True)
            raise

    def _write(self, slots: Sequence[Slot], begun: set[Slot], progress: Progress | None) -> None:
        done, total = 0, sum(slot.nbytes for slot in slots)

        def write(slot: Slot) -> int:
            begun.add(slot)
            slot.rewrite(allow_nonfinite=self._allow_nonfinite)
            return slot.nbytes

        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            for size in pool.map(write, slots) if self._threads > 1 else map(write, slots):
                done += size
                if progress is not None:
                    progress(done, total)


def by_component(scale: Scale, current: Mapping[str, float]) -> dict[str, float]:
    """The number of every component: one for all, or those that are named, the others as they are `current`ly.

    Raises UsageError for names that the adapter does not have.
    """
    told = Scales.of(scale)
    if not isinstance(scale, Mapping) and not (isinstance(scale, str) and "=" in scale):
        return dict.fromkeys(current, told.overall)
    for name in told.components:
        if name not in current:
            hint = nearest(name, current) or f"components: {', '.join(current)}"
            raise UsageError(f"the adapter has no component {name!r}", hint=hint)
    return {**current, **told.components}
