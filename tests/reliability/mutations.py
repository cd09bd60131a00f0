"""Structure-aware damage: one to eight mutations of a valid adapter file, and what every reader must make of it."""

import json
import random
import struct

from fixtures.broken.adapter import BITS, KEY, QUERY, good, layer, packed, tensor, whole
from loratools.errors import LoratoolsError
from loratools.formats.opening import open_reference
from loratools.formats.parse import parse

MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
NUMBERS = (0, 1, 2, -1, 3, 7, 8, 319, 320, 640, 65536, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, 1.5, True, None)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "C64", "f16", "")
PIECES = (
    "\0",
    "\n",
    "\x1b[31m",
    "\u202e",
    "é",
    ".",
    "..",
    "/",
    "lora_",
    ".alpha",
    ".weight",
    "default.",
    "🧨",
    "\ud800",
)
SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha", ".dora_scale", ".lora_A.weight",
            ".hada_w1_a", ".lokr_w1", ".diff", ".diff_b", ".w_norm", ".on_input", ".oft_blocks",
            ".a1.weight")  # fmt: skip
TEXTS = ("", "x", "{", "[]", "null", "NaN", "-1", "1e999", "1/0", "9" * 50, "\x1b[2J",
         '{"a":1,"a":2}', '{"unet.r":0}')  # fmt: skip
META = ("ss_network_alpha", "ss_network_dim", "alpha", "lora_alpha", "network_alpha", "ss_base_model_version",
        "modelspec.architecture", "lora_adapter_metadata", "loratools.original", "sshs_model_hash", "format",
        "ss_tag_frequency", "modelspec.title", "ss_network_args", "modelspec.trigger_phrase")  # fmt: skip


def seeds():
    """The valid files that are damaged: kohya, PEFT and LyCORIS spellings, with and without metadata."""
    peft = {f"{MODULE}.{name}.lora_{side}.weight": tensor("F16", *shape, fill=b"\x01\x3c")
            for name in ("to_q", "to_k") for side, shape in (("A", (2, 320)), ("B", (320, 2)))}  # fmt: skip
    loha = {f"{QUERY}.hada_w{n}_{side}": tensor("F16", *shape, fill=b"\x02\x38")
            for n in (1, 2) for side, shape in (("a", (320, 1)), ("b", (1, 320)))}  # fmt: skip
    lokr = {f"{QUERY}.lokr_w1": tensor("F32", 8, 8), f"{QUERY}.lokr_w2_a": tensor("F32", 40, 1),
            f"{QUERY}.lokr_w2_b": tensor("F32", 1, 40)}  # fmt: skip
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": ["to_q", "to_k"]})
    return (
        whole(good()),
        whole(good(), {"ss_network_alpha": "1", "ss_network_dim": "1", "ss_base_model_version": "sd_v1"}),
        whole(peft, {"format": "pt", "lora_adapter_metadata": config}),
        whole({**loha, f"{QUERY}.alpha": tensor("F32")}),
        whole({**lokr, f"{QUERY}.alpha": tensor("F32", fill=b"\0\0\x80\x3f")}),
        whole(
            {
                **layer(QUERY, 320, 320, 4),
                f"{QUERY}.dora_scale": tensor("F16", 320, 1, fill=b"\0\x3c"),
                **layer(KEY, 320, 768, 4),
            },
            {"ss_network_args": "{}"},
        ),
    )


SEEDS = seeds()


def mutate(seed):
    """The damaged file of a seed."""
    rng = random.Random(seed)
    data = rng.choice(SEEDS)
    (length,) = struct.unpack("<Q", data[:8])
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    late = []
    deep = rng.random() < 0.7  # most of the damage shall get past the header
    for _ in range(rng.randint(1, 8)):
        how = rng.choice((*DEEP, *DEEP, *DEEP, *IN_HEADER, *IN_BYTES) if deep else (*IN_HEADER, *IN_BYTES))
        if how in IN_BYTES:
            late.append(how)
        else:
            header = how(rng, header)
    if deep or rng.random() < 0.5:
        header, payload = laid_out(header, payload)
    data = packed(json.dumps(header), payload)
    for how in late:
        data = how(rng, data)
    return data


def laid_out(header, payload):
    """The header with offsets that fit its shapes again, as far as these make sense, so that damage lies deeper."""
    at, entries = 0, {}
    for key, entry in header.items():
        if key == "__metadata__" or not isinstance(entry, dict):
            entries[key] = entry
            continue
        size = BITS.get(entry.get("dtype"), 8) if isinstance(entry.get("dtype"), str) else 8
        shape = entry.get("shape")
        for extent in shape if isinstance(shape, list) else ():
            size *= extent if type(extent) is int and 0 <= extent < 1 << 20 else 1
        size = min(size // 8, 1 << 20)
        entries[key] = {**entry, "data_offsets": [at, at + size]}
        at += size
    return entries, (payload * (at // max(1, len(payload)) + 1))[:at]


def _entry(rng, header):
    keys = [key for key, value in header.items() if key != "__metadata__" and isinstance(value, dict)]
    return rng.choice(keys) if keys else None


def _shape(rng, header):
    key = _entry(rng, header)
    if key and isinstance(header[key].get("shape"), list):
        shape = list(header[key]["shape"])
        way = rng.randrange(5)
        if way == 0 and shape:
            shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
        elif way == 1:
            shape.insert(rng.randint(0, len(shape)), rng.choice((1, 1, *NUMBERS)))
        elif way == 2 and shape:
            shape.pop(rng.randrange(len(shape)))
        else:
            rng.shuffle(shape)
        header[key] = {**header[key], "shape": shape}
    return header


def _field(rng, header):
    key = _entry(rng, header)
    if key:
        entry = dict(header[key])
        name = rng.choice(("dtype", "shape", "data_offsets", "extra"))
        if rng.random() < 0.3:
            entry.pop(name, None)
        else:
            entry[name] = rng.choice((*NUMBERS, *DTYPES, [], {}, [0], [0, 0], [[1]], "x"))
        header[key] = entry
    return header


def _dtype(rng, header):
    key = _entry(rng, header)
    if key:
        header[key] = {**header[key], "dtype": rng.choice(DTYPES)}
    return header


def _offsets(rng, header):
    key = _entry(rng, header)
    offsets = header[key].get("data_offsets") if key else None
    if isinstance(offsets, list) and offsets:
        offsets = list(offsets)
        at = rng.randrange(len(offsets))
        near = offsets[at] + rng.choice((-2, -1, 1, 2)) if isinstance(offsets[at], int) else 0
        offsets[at] = rng.choice((*NUMBERS, near))
        header[key] = {**header[key], "data_offsets": offsets}
    return header


def _key(rng, header):
    key = _entry(rng, header)
    if key is None:
        return header
    at = rng.randint(0, len(key))
    edits = (
        lambda: key[:at] + rng.choice(PIECES) + key[at:],
        lambda: key[:at] + key[at + 1 :],
        lambda: key[:at],
        key.upper,
        lambda: key.partition(".")[0] + rng.choice(SUFFIXES),
        lambda: key.replace(str(rng.randrange(3)), str(rng.choice((9, 99, 10**6, "x")))),
        lambda: rng.choice(("", "__metadata__", key * 3, "k" * 2000)),
    )
    new = rng.choice(edits)()
    return {(new if name == key else name): value for name, value in header.items()}


def _copy(rng, header):
    key = _entry(rng, header)
    return {**header, key.rpartition(".")[0] + rng.choice(SUFFIXES): header[key]} if key else header


def _drop(rng, header):
    key = _entry(rng, header)
    return {name: value for name, value in header.items() if name != key}


def _swap(rng, header):
    one, other = _entry(rng, header), _entry(rng, header)
    if one and other:
        header[one], header[other] = header[other], header[one]
    return header


def _metadata(rng, header):
    held = header.get("__metadata__")
    held = dict(held) if isinstance(held, dict) else {}
    held[rng.choice(META)] = rng.choice((*TEXTS, *TEXTS, *TEXTS, 1, None, ["x"]))
    return {"__metadata__": rng.choice((held, held, held, held, held, "x", None, [])), **header}


def _length(rng, data):
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    new = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, rng.randrange(2**20)))
    return struct.pack("<Q", new % 2**64) + data[8:]


def _cut(rng, data):
    return data[: rng.randint(0, len(data))]


def _bits(rng, data):
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if found:
            found[rng.randrange(min(len(found), 2048))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _splice(rng, data):
    other = rng.choice(SEEDS)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _insert(rng, data):
    at = rng.randint(0, min(len(data), 2048))
    return data[:at] + rng.choice((b"\0", b" ", b'"', b"{", b"}", b",", b"[" * 2000, b"\xff", b"-", b"1e9")) + data[at:]


DEEP = (_shape, _dtype, _key, _copy, _drop, _swap, _metadata)
IN_HEADER = (_shape, _field, _dtype, _offsets, _key, _copy, _drop, _swap, _metadata)
IN_BYTES = (_length, _cut, _bits, _splice, _insert)


def judge(data):
    """The word "parsed", "read" or "refused".

    Raises AssertionError where we read what safetensors does not, or read it otherwise, or refuse with a code that a
    file cannot have earned; any exception but our own comes through.
    """
    from safetensors import deserialize

    opened, refusal = attempted(open_reference, data)
    if refusal is not None:
        assert refusal.exit_code in (3, 7), refusal
        return "refused"
    source = opened.parts[0].source
    theirs = dict(deserialize(data))
    assert {key: list(source[key].shape) for key in source} == {key: item["shape"] for key, item in theirs.items()}
    for key in source:
        assert source[key].tobytes() == bytes(theirs[key]["data"]), key
    _, refusal = attempted(parse, opened)
    if refusal is not None:
        assert refusal.exit_code in (3, 4, 7), refusal
        return "read"
    return "parsed"


def attempted(work, given):
    """What `work` makes of `given`, or the refusal of ours that it ends in."""
    try:
        return work(given), None
    except LoratoolsError as error:
        return None, error
