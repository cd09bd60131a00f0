"""One live pipeline and its scenes: what it draws as it stands, and what has become of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratools.operations.validation.result import MODULES, Modules
from loratools.operations.validation.truth import Spot, SpotError, Truth
from loratools.pipelines.closeness import Closeness, closeness
from loratools.pipelines.denoiser import Call, denoisers_of, recorded, replay
from loratools.pipelines.fingerprints import fingerprints, names_of
from loratools.pipelines.live import layers, module_of, weight_of
from loratools.pipelines.own_loader import Change, change_of
from loratools.pipelines.running import Drawing, Drawn, draw

if TYPE_CHECKING:
    import torch

Scene = tuple[str, int]
"""A prompt and a seed."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a pipeline made: a picture a scene, and what its denoiser makes of the inputs that were recorded."""

    drawn: tuple[Drawn, ...]
    probes: tuple[torch.Tensor, ...] = ()

    def against(self, reference: Shown) -> Closeness:
        """How far it is from a reference."""
        return closeness(self.drawn, reference.drawn, (self.probes, reference.probes))


@dataclass
class Stage:
    """A pipeline that is loaded; `calls` are the inputs of its denoisers at every step of the first scene, recorded
    once and given to every route.
    """

    pipeline: Any
    truth: Truth
    scenes: Sequence[Scene]
    drawing: Drawing
    calls: list[Call] = field(default_factory=list)

    def record(self) -> Shown:
        """Draw every scene, and keep what the denoiser was given in the first."""
        prompt, seed = self.scenes[0]
        with recorded(denoisers_of(self.pipeline)) as calls:
            first = draw(self.pipeline, prompt, seed, self.drawing)
        self.calls = calls
        return Shown((first, *self._draw(self.scenes[1:])), self.probe())

    def show(self, scenes: int | None = None) -> Shown:
        """Draw the scenes, or the first few of them, and give the denoiser what was recorded."""
        return Shown(self._draw(self.scenes[:scenes]), self.probe())

    def probe(self) -> tuple[torch.Tensor, ...]:
        """What the denoiser makes of the recorded inputs."""
        return tuple(replay(denoisers_of(self.pipeline), self.calls))

    def parameter(self, spot: Spot) -> torch.Tensor:
        """The live parameter of a spot."""
        return weight_of(getattr(self.pipeline, spot.component), spot.path, spot.leaf)

    def change(self, spot: Spot) -> torch.Tensor:
        """The true change of a spot in float64, made where its parameter is (MPS has no float64)."""
        device = self.parameter(spot).device
        return self.truth.delta(spot, "cpu" if device.type == "mps" else str(device))

    def modules(self, before: Mapping[str, int] | None = None, scale: float = 1.0) -> Modules:
        """Hold what became of every weight to the truth times `scale`; with `before`, the fingerprints of the base,
        every other tensor must have kept its bits.
        """
        found = [self.truth.judge_weight(spot, self.parameter(spot), MODULES, scale) for spot in self.truth.spots]
        moved = self.moved(before) - self._touched() if before is not None else frozenset()
        return Modules(_worst_first(found), tuple(sorted(moved)))

    def moved(self, before: Mapping[str, int]) -> frozenset[str]:
        """The tensors whose bits are not those of the fingerprints."""
        now = fingerprints(self.pipeline)
        return frozenset(name for name in {*now, *before} if now.get(name) != before.get(name))

    def loaded_modules(self) -> Modules:
        """Hold the changes of PEFT's layers, which diffusers' loader has put around modules, to the truth."""
        import torch

        found: list[SpotError] = []
        unexpected: list[str] = []
        wanted = {(spot.component, id(self._module(spot)), spot.leaf) for spot in self.truth.spots}
        changes: dict[int, Change] = {}
        for component, model in self.pipeline.components.items():
            for layer in layers(component, model) if isinstance(model, torch.nn.Module) else ():
                if layer.wrapper is None:
                    continue
                made = change_of(layer.wrapper)
                changes[id(layer.module)] = made
                for leaf, change in (("weight", made.weight), ("bias", made.bias)):
                    is_wanted = (component, id(layer.module), leaf) in wanted
                    if change is not None and not is_wanted and bool(change.any()):
                        unexpected.append(layer.name if leaf == "weight" else f"{layer.name} ({leaf})")
        for spot in self.truth.spots:
            found_change = changes.get(id(self._module(spot)))
            delta = None if found_change is None else getattr(found_change, spot.leaf)
            if delta is None:
                delta = torch.zeros_like(self.truth.delta(spot))
            found.append(self.truth.judge_change(spot, delta, MODULES))
        return Modules(_worst_first(found), tuple(unexpected))

    @contextmanager
    def written(self, changes: Mapping[Spot, torch.Tensor | None]) -> Iterator[None]:
        """Within the block the weights of these spots are the base's plus a change (None: the base's alone)."""
        kept = {spot: self.parameter(spot).detach().clone() for spot in changes}
        try:
            for spot, change in changes.items():
                live = self.parameter(spot)
                total = self.truth.base(spot).to(live.dtype).double()
                if change is not None:
                    total = total + change.to(total.device)
                live.data.copy_(total.reshape(live.shape))
            yield
        finally:
            for spot, tensor in kept.items():
                self.parameter(spot).data.copy_(tensor)

    def _module(self, spot: Spot) -> torch.nn.Module:
        return module_of(getattr(self.pipeline, spot.component), spot.path)

    def _touched(self) -> frozenset[str]:
        return names_of(self.pipeline, {id(self.parameter(spot)) for spot in self.truth.spots})

    def _draw(self, scenes: Sequence[Scene]) -> tuple[Drawn, ...]:
        return tuple(draw(self.pipeline, prompt, seed, self.drawing) for prompt, seed in scenes)


def _worst_first(found: Sequence[SpotError]) -> tuple[SpotError, ...]:
    return tuple(sorted(found, key=lambda item: (-item.error, item.spot)))
