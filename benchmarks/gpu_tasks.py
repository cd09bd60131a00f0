"""One measurement of the script for machines with a GPU: a pipeline made, merged, extracted and validated there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratools.pipelines.parts import Blueprint

PICTURES = 4 << 20
"""The most bytes of pictures in OUT."""
DTYPES = {"bf16": "BF16", "fp16": "F16"}


@dataclass(frozen=True)
class Run:
    """How a pipeline is measured: the dtype of its weights, height and width in pixels, steps, the rank of an
    extraction, the bytes of a shard, and the dtypes that it is validated in.
    """

    dtype: str
    pixels: int
    steps: int
    rank: int
    shard: int
    validated: tuple[str, ...]


TINY = Run("float32", 64, 1, 8, 10_000_000_000, ("bf16", "fp16"))
FULL = replace(TINY, pixels=512, steps=20, rank=64)
RUNS: dict[str, dict[str, Run]] = {
    "full": {
        "sd1": FULL,
        "sdxl": replace(FULL, pixels=1024),
        # 24 GB of weights, and twice that in float32, which judges: small pictures of few steps.
        "flux1": Run("bfloat16", 512, 4, 64, 5_000_000_000, ("bf16",)),
    },
    "tiny": {"sd1": TINY, "sdxl": TINY, "flux1": replace(TINY, dtype="bfloat16", shard=200_000, validated=("bf16",))},
}
"""size → architecture → how."""


@dataclass(frozen=True)
class Place:
    """Where a task finds and leaves its files, and on what device it runs."""

    out: Path
    work: Path
    size: str
    device: str

    def run(self, architecture: str) -> Run:
        """How a pipeline is measured."""
        return RUNS[self.size][architecture]

    def folder(self, architecture: str) -> Path:
        """The folder of everything that is made of an architecture."""
        return self.work / architecture

    def pipeline(self, architecture: str) -> Path:
        """The folder of a pipeline."""
        return self.folder(architecture) / "pipeline"

    def lora(self, architecture: str) -> Path:
        """The adapter for a pipeline."""
        return self.folder(architecture) / "lora.safetensors"

    def merged(self, architecture: str) -> Path:
        """What `merge` made of a pipeline."""
        return self.folder(architecture) / "merged"


@dataclass(frozen=True)
class Task:
    """One measurement: `least` is the number of seconds below which a full-size one is not begun."""

    verb: str
    architecture: str
    run: Callable[[Place], dict[str, Any]]
    least: int
    dtype: str = ""

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return " ".join(filter(None, (self.verb, self.architecture, self.dtype)))


def timed(device: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, with its seconds and the most bytes of the device that it used at once, None on the CPU."""
    from loratools.pipelines.meter import measured

    with measured(device) as spent:
        result = work()
    peak = None if device == "cpu" else spent.peak_bytes
    return result, {"seconds": round(spent.seconds, 3), "peak_device_bytes": peak}


def plan_of(architecture: str, size: str) -> Blueprint:
    """What is made: the pipeline of that size; of FLUX.1 the transformer alone is full-size, beside small encoders of
    the widths that it reads, which leaves 24 GB in bfloat16.
    """
    from loratools.pipelines.blueprints import blueprint
    from loratools.pipelines.tiny.encoders import clip, t5

    if size == "tiny" or architecture != "flux1":
        return blueprint(architecture, "tiny" if size == "tiny" else "full")
    small, transformer = blueprint("flux1"), blueprint("flux1", "full").part("transformer")
    pooled, width = (int(transformer.config[name]) for name in ("pooled_projection_dim", "joint_attention_dim"))
    encoders = (
        clip("text_encoder", pooled, projection=pooled, activation="quick_gelu"),
        t5("text_encoder_2", width),
    )
    kept = tuple(part for part in small.parts if part.name in ("vae", "scheduler"))
    return replace(small, parts=(transformer, *encoders, *kept))


def make(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that makes the pipeline and an adapter for it."""

    def run(place: Place) -> dict[str, Any]:
        from loratools.pipelines.adapters import make_demo_adapter
        from loratools.pipelines.synthetic import write_pipeline

        folder, wanted = place.pipeline(architecture), place.run(architecture)
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        plan, how = plan_of(architecture, place.size), {"dtype": wanted.dtype, "device": place.device}
        _, spent = timed(place.device, lambda: write_pipeline(plan, folder, limit=wanted.shard, **how))
        make_demo_adapter(folder, place.lora(architecture))
        files = [path for path in folder.rglob("*") if path.is_file()]
        shards = len(list((folder / plan.denoisers[0]).glob("*.safetensors")))
        size = sum(path.stat().st_size for path in files)
        return {**spent, "bytes": size, "dtype": wanted.dtype, "shards": shards}

    return run


def merge(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that merges on the device and on the CPU and compares the two."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        base, lora, out = place.pipeline(architecture), place.lora(architecture), place.merged(architecture)
        found: dict[str, Any] = {}
        for device in dict.fromkeys((place.device, "cpu")):
            how = {"device": device, "threads": os.cpu_count() or 1, "overwrite": True}
            _, spent = timed(device, lambda how=how: loratools.merge(base, [(lora, 0.8)], out, **how))
            found[device] = {**spent, "weights_sha256": digest(out)}
            if device != "cpu":
                shutil.rmtree(out)  # two of them may be more than there is room for
        found["same_bytes"] = len({made["weights_sha256"] for made in found.values()}) == 1
        return found

    return run


def digest(folder: Path) -> str:
    """The SHA-256 of all weights of a pipeline."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def extract(architecture: str) -> Callable[[Place], dict[str, Any]]:
    """A task that extracts on the device at a fixed rank and says how far the worst layer is from its optimum."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        base, tuned = place.pipeline(architecture), place.merged(architecture)
        target = place.work / architecture / "extracted.safetensors"
        rank = place.run(architecture).rank

        def work() -> Any:
            pending = loratools.extract(base, tuned, rank=rank, device=place.device)
            return pending.save(target, overwrite=True)

        result, spent = timed(place.device, work)
        shutil.rmtree(tuned)  # `validate` merges for itself, and a disk may hold no third copy
        document = result.to_dict()
        return {**spent, "rank": rank, "relative_error": document["error"], "layers": len(document["layers"])}

    return run


def validate(architecture: str, dtype: str) -> Callable[[Place], dict[str, Any]]:
    """A task that validates in a dtype, with the negative controls, and keeps the contact sheet."""

    def run(place: Place) -> dict[str, Any]:
        import loratools

        report, how = place.folder(architecture) / f"report-{dtype}", place.run(architecture)
        result, spent = timed(
            place.device,
            lambda: loratools.validate(
                place.pipeline(architecture),
                [(place.lora(architecture), 0.8)],
                to=["kohya"],
                dtype=DTYPES[dtype],
                device=place.device,
                steps=how.steps,
                size=(how.pixels, how.pixels),
                negative_controls=True,
                report=report,
                overwrite=True,
                work=place.work,
                arch=architecture,
            ),
        )
        keep_picture(report, place.out / f"{architecture}-{dtype}.png", place.out)
        document = result.to_dict()
        if spent["peak_device_bytes"] is not None:  # its routes are measured one by one, each from where it began
            peaks = (route["peak_bytes"] for route in document["routes"])
            spent["peak_device_bytes"] = max(spent["peak_device_bytes"], *peaks)
        chosen = (
            "verdict", "reasons", "judged_in", "effect", "routes", "floors", "scale", "controls", "warnings",
            "versions",
        )  # fmt: skip
        return {**spent, **{key: document[key] for key in chosen}}

    return run


def keep_picture(report: Path, target: Path, out: Path) -> None:
    """Copy the report's contact sheet, made smaller where all pictures would take more than their share."""
    from PIL import Image

    sheet = report / "contact-sheet.png"
    room = PICTURES - sum(path.stat().st_size for path in out.glob("*.png") if path != target)
    share = min(room, PICTURES // sum(len(run.validated) for run in RUNS["full"].values()))
    image = Image.open(sheet).convert("RGB")
    while True:
        image.save(target, optimize=True)
        if target.stat().st_size <= share:
            return
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)


LEAST = {"sd1": 20, "sdxl": 60, "flux1": 120}

TASKS = tuple(
    task
    for architecture, least in LEAST.items()
    for task in (
        Task("make", architecture, make(architecture), least),
        Task("merge", architecture, merge(architecture), least),
        Task("extract", architecture, extract(architecture), least),
        *(
            Task("validate", architecture, validate(architecture, dtype), 2 * least, dtype)
            for dtype in RUNS["full"][architecture].validated
        ),
    )
)
