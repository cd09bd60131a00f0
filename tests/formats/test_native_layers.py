"""Every layer that a model's own names fuse, or lay out otherwise, goes to its canonical parts and back bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

import loratools
from loratools.architectures.naming import Template
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.errors import NotRepresentable
from loratools.formats.opening import open_reference
from loratools.formats.parse import parse
from tests.formats.making import KOHYA, PEFT, Draw, assert_same_tensors, kind_factors, read, write

COLUMNS, UNIT = 8, 8


def odd_rules(naming):
    return [rule for rule in naming.rules if len(rule.canonical) > 1 or rule.layout.startswith("swap")]


# (architecture, naming, row) of every such layer of every denoiser
LAYERS = [
    pytest.param(known.id, naming.name, at, id=f"{known.id}-{naming.name}-{rule.native}")
    for known in ARCHITECTURES
    for naming in known.denoiser.namings
    for at, rule in enumerate(odd_rules(naming))
    if rule.joint == "."
]


def layer(name, naming, at):
    """The native path, canonical paths, their rows, and the rows of the native weight in canonical order."""
    known = architecture(name)
    rule = odd_rules(known.denoiser.naming(naming))[at]
    *_, values = Template.parse(rule.native).expand()
    paths = [Template.parse(part).fill(values) for part in rule.canonical]
    sizes = [UNIT * share for share in rule.ratio] if len(paths) > 1 else [2 * COLUMNS]
    total = sum(sizes)
    order = list(range(total // 2, total)) + list(range(total // 2)) if rule.layout != "rows" else list(range(total))
    return Template.parse(rule.native).fill(values), paths, sizes, order


def converted(source, to, out, arch):
    loratools.convert(source, to=to, arch=arch).save(out)
    return out


@pytest.mark.parametrize(("name", "naming", "at"), LAYERS)
def test_a_native_layer_is_the_rows_of_its_parts(name, naming, at, tmp_path):
    native, paths, sizes, order = layer(name, naming, at)
    draw = Draw()
    down, up, alpha = draw(3, COLUMNS), draw(sum(sizes), 3), torch.tensor(1.5, dtype=torch.float16)
    stem = f"diffusion_model.{native}"
    source = write(
        {stem + KOHYA["down"]: down, stem + KOHYA["up"]: up, f"{stem}.alpha": alpha}, tmp_path / "in.safetensors"
    )
    made = load_file(converted(source, "diffusers", tmp_path / "out.safetensors", name))
    start = 0
    component = architecture(name).denoiser.name
    for path, size in zip(paths, sizes, strict=True):
        assert made[f"{component}.{path}{PEFT['down']}"].equal(down)
        assert made[f"{component}.{path}{PEFT['up']}"].equal(up[order[start : start + size]])
        start += size
    assert len(made) == 2 * len(paths)
    back = converted(tmp_path / "out.safetensors", "original", tmp_path / "back.safetensors", name)
    assert_same_tensors(read(back), read(source))


def written_as(param):
    """The formats that spell a layer so."""
    name, naming, _ = param.values
    return [to for to in ("kohya", "comfy") if getattr(architecture(name), to) == naming]


@pytest.mark.parametrize("missing", [0, 1], ids=["whole", "missing"])  # the first part, and then all are equal
@pytest.mark.parametrize(("name", "naming", "at"), list(filter(written_as, LAYERS)))
def test_parts_come_back_from_their_native_layer(name, naming, at, missing, tmp_path):
    known, equal = architecture(name), bool(missing)
    targets = [to for to in ("kohya", "comfy") if getattr(known, to) == naming]
    _, paths, sizes, _ = layer(name, naming, at)
    missing = missing if len(paths) > 1 else 0
    draw, tensors = Draw(), {}
    for number, (path, size) in enumerate(zip(paths[missing:], sizes[missing:], strict=True)):
        rank = 2 if equal else 1 + number
        stem = f"{known.denoiser.name}.{path}"
        tensors |= {stem + KOHYA["down"]: draw(rank, COLUMNS), stem + KOHYA["up"]: draw(size, rank)}
        tensors[f"{stem}.alpha"] = torch.tensor(2.0 if equal else 1.0 + 2 * number)
    source = write(tensors, tmp_path / "in.safetensors")
    for to in targets:
        middle = converted(source, to, tmp_path / f"{to}.safetensors", name)
        assert len(read(middle)) == 3
        back = converted(middle, "original", tmp_path / f"{to}-back.safetensors", name)
        assert_same_tensors(read(back), read(source))


def dense(kind, factors, rows):
    """The delta of one layer by float64 products of its stored factors, without its alpha."""
    held = {key[key.index(".") :]: tensor.double() for key, tensor in factors.items()}
    if kind in ("lora", "dora"):
        return held[KOHYA["up"]] @ held[KOHYA["down"]]
    if kind == "loha":
        return (held[".hada_w1_a"] @ held[".hada_w1_b"]) * (held[".hada_w2_a"] @ held[".hada_w2_b"])
    if kind == "lokr":
        return torch.kron(held[".lokr_w1"], held[".lokr_w2_a"] @ held[".lokr_w2_b"])
    assert kind == "full"
    return torch.cat([held[".diff"], held[".diff_b"].reshape(rows, 1)], dim=1)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "full"])
@pytest.mark.parametrize("blocks", [2, 6])
def test_the_last_text_modulation_of_sd3_turns_every_factor_with_an_output_axis(kind, blocks, tmp_path):
    rows = blocks * COLUMNS
    factors = kind_factors(kind, (rows, COLUMNS), Draw())
    stem = "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1"
    tensors = {stem + suffix: tensor for suffix, tensor in factors.items()}
    source = write(tensors, tmp_path / "in.safetensors")
    reading = loratools.convert(source, to="kohya", arch="sd3")
    assert_same_tensors(reading.state_dict(), load_file(source))
    half = rows // 2
    order = [*range(half, rows), *range(half)] if blocks == 2 else list(range(rows))
    native = dense(kind, {key[len(stem) :]: tensor for key, tensor in tensors.items()}, rows)
    (adapter,) = parse(open_reference(source), arch="sd3").adapters.adapters
    names = {"w1_a": ".hada_w1_a", "w1_b": ".hada_w1_b", "w2_a": ".hada_w2_a", "w2_b": ".hada_w2_b"}
    names = {"w1": ".lokr_w1", "w2_a": ".lokr_w2_a", "w2_b": ".lokr_w2_b"} if kind == "lokr" else names
    names |= {"down": KOHYA["down"], "up": KOHYA["up"], "diff": ".diff", "bias_diff": ".diff_b"}
    held = {names[role]: tensor.load() for role, tensor in adapter.factors.items() if role in names}
    assert dense(kind, held, rows).equal(native[order])
    if kind == "dora":
        assert adapter.factors["magnitude"].load().equal(factors[".dora_scale"].reshape(-1)[order])


def test_a_vector_does_not_tell_whether_halves_change_places(tmp_path):
    stem = "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1"
    tensors = {f"{stem}.weight": torch.ones(16), f"{stem}.on_input": torch.tensor(False)}
    source = write(tensors, tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable) as refusal:
        loratools.convert(source, to="peft", arch="sd3")
    assert refusal.value.key == stem
