"""Damages files as chance has it, by what is in them: the same random numbers give the same damage.

Half of the damage knows the form (a value in JSON, a chunk of a PNG with its checksum put right, a tensor of a
checkpoint), so that it gets past the first check; the other half are bytes.
"""

import html
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

Files = dict[str, bytes]
"""By name relative to the folder of the case."""

Way = Callable[[bytes, Random], bytes]

NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    99999,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
)
TEXTS = (
    "",
    " ",
    "\x00",
    "$\\frac{",
    "\ud800",
    "ü" * 300,
    "x" * 100_000,
    "../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "<b>",
    "[red]",
    "%s{}",
    "NaN",
    "1e999",
    "-1",
    "#2",
)
LARGEST = 8_000_000
"""Bytes from which a file is not damaged further: what it takes to read it would be its own size."""
PLANTED = "PLANTED"
"""Name of the file that a pickle with code in it would make."""


def damage(files: Files, chance: Random, names: list[str]) -> Files:
    """Return the files with one of `names` damaged, once or a few times."""
    name = chance.choice(names)
    content = files[name]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if len(content) > LARGEST:
            break
        ways = ways_for(name, content) if chance.random() < 0.6 else []
        try:
            content = chance.choice(ways or [damaged_bytes])(content, chance)
        except Exception:  # its form did not survive the damage before
            content = damaged_bytes(content, chance)
    return {**files, name: content}


def ways_for(name: str, content: bytes) -> list[Way]:
    """Return what knows the form of a file."""
    suffix = PurePath(name).suffix
    by_suffix: dict[str, list[Way]] = {
        ".json": [damaged_json],
        ".jsonl": [damaged_lines],
        ".safetensors": [damaged_safetensors, damaged_tensors],
        ".onnx": [damaged_onnx],
        ".xml": [damaged_xml],
    }
    by_start: dict[bytes, list[Way]] = {
        b"PK": [damaged_zip, damaged_zip, damaged_tensors],
        b"\x80\x02": [damaged_pickle, damaged_tensors],
        b"\x89PNG": [damaged_png],
        b"II*\0": [damaged_tiff],
        b"\x93NUMPY": [damaged_npy],
        b"HTTP/": [damaged_head],
    }
    text: list[Way] = [damaged_text] if suffix in (".csv", ".txt", ".json", ".yaml", ".xml", ".jsonl") else []
    started = next((ways for start, ways in by_start.items() if content.startswith(start)), [])
    return [*by_suffix.get(suffix, []), *started, *text]


# --- bytes and text


def damaged_bytes(content: bytes, chance: Random) -> bytes:
    """Flip, overwrite, insert, delete, repeat, move or cut off some bytes."""
    data = bytearray(content)
    at = (
        chance.randrange(len(data) + 1)
        if chance.random() < 0.5
        else chance.randrange(min(len(data), 128) + 1)
    )
    length = chance.choice((1, 1, 2, 4, 8, 64, 1024))
    kind = chance.choice(("flip", "number", "noise", "insert", "delete", "repeat", "move", "cut", "grow"))
    if kind == "flip":
        for _ in range(length):
            if data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "number":
        form = chance.choice(["<b", "<h", "<i", "<q", ">h", ">i", ">q"])
        size = struct.calcsize(form)
        data[at : at + size] = (chance.choice(NUMBERS) % 256**size).to_bytes(
            size, "little" if form[0] == "<" else "big"
        )
    elif kind == "noise":
        data[at : at + length] = chance.randbytes(length)
    elif kind == "insert":
        data[at:at] = chance.randbytes(length)
    elif kind == "delete":
        del data[at : at + length]
    elif kind == "repeat":
        data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
    elif kind == "move":
        other = chance.randrange(len(data) + 1)
        data[at : at + length] = data[other : other + length]
    elif kind == "cut":
        del data[at:]
    else:
        data += chance.choice((b"\0", b"\xff", content)) * length
    return bytes(data)


def damaged_text(content: bytes, chance: Random) -> bytes:
    """Replace a word or number, move a line, or write it in another encoding."""
    text = content.decode("utf-8")
    kind = chance.choice(("word", "number", "line", "encoding"))
    if kind in ("word", "number"):
        found = list(re.finditer(r"\w+" if kind == "word" else r"-?[\d.]+", text))
        span = chance.choice(found).span()
        new = str(chance.choice(NUMBERS)) if chance.random() < 0.5 else chance.choice(TEXTS)
        text = text[: span[0]] + new + text[span[1] :]
    elif kind == "line":
        lines = text.split("\n")
        line = lines.pop(chance.randrange(len(lines)))
        for _ in range(chance.choice((0, 1, 2))):
            lines.insert(chance.randrange(len(lines) + 1), line)
        text = "\n".join(lines)
    else:
        return text.encode(chance.choice(("utf-16", "utf-8-sig", "utf-32")))
    return text.encode("utf-8", "surrogatepass")


# --- HTTP


def damaged_head(content: bytes, chance: Random) -> bytes:
    """Change, remove or double a header, or the status."""
    head, _, body = content.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = chance.randrange(len(lines))
    kind = chance.choice(("value", "value", "status", "remove", "double"))
    if kind == "remove":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "status":
        lines[0] = b"HTTP/1.1 " + chance.choice(
            (b"204", b"301", b"307", b"416", b"401", b"600", b"-1", b"x", b"")
        )
    else:
        number = str(chance.choice((*NUMBERS, -2)))
        new = chance.choice(
            (number, number, chance.choice(TEXTS), "bytes 0-9/10", "http://[::1", "//", "gzip")
        )
        lines[at] = lines[at].partition(b":")[0] + b": " + new.encode("utf-8", "surrogatepass")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# --- JSON


def damaged_json(content: bytes, chance: Random) -> bytes:
    """Replace, remove, double or rename something anywhere in it; now and then the whole."""
    if chance.random() < 0.15:
        return whole_json(chance)
    return dumped(damaged_value(json.loads(content), chance, json_junk))


def dumped(value: Any) -> bytes:
    # A surrogate alone is legal as an escape, and no text.
    return json.dumps(value, ensure_ascii=True).encode()


def whole_json(chance: Random) -> bytes:
    depth = chance.choice((500, 5000, 200_000))
    deep = chance.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    number = b"1" * chance.choice((400, 5000))
    return chance.choice((deep, number, b"null", b"[]", b"{}", b'""', b"NaN", b"", b"\xff\xfe{", b"true"))


def damaged_lines(content: bytes, chance: Random) -> bytes:
    """Damage one line of JSON lines."""
    lines = content.split(b"\n")
    at = chance.randrange(len(lines) - 1)
    lines[at] = damaged_json(lines[at], chance)
    return b"\n".join(lines)


def json_junk(old: Any, chance: Random) -> Any:
    """Return something that is probably not expected in this place."""
    deep: Any = 0
    for _ in range(chance.choice((3, 900))):
        deep = [deep]
    numbers = [float("nan"), float("inf"), 1e308, -0.5, 0.5, 10**400, chance.choice(NUMBERS)]
    others = [None, True, False, [], {}, [old], {"a": old}, deep, str(old), [old] * 1000]
    return chance.choice((chance.choice(numbers), chance.choice(TEXTS), chance.choice(others)))


def damaged_value(value: Any, chance: Random, junk: Callable[[Any, Random], Any]) -> Any:
    """Return a tree of dicts and lists with one place of it damaged."""
    inner = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    if not inner or chance.random() < 0.25:
        return junk(value, chance)
    key, child = chance.choice(inner)
    kind = chance.choice(("inside", "inside", "inside", "remove", "double", "rename"))
    changed = value.copy()
    if kind == "inside":
        changed[key] = damaged_value(child, chance, junk)
    elif kind == "remove":
        del changed[key]
    elif isinstance(changed, list):
        changed.insert(chance.randrange(len(changed) + 1), child)
    elif kind == "double":
        changed[chance.choice(TEXTS)] = child
    else:
        changed[chance.choice((f"{key}0", str(key).upper(), str(key)[:-1], "deep_tokens.99", 7))] = (
            changed.pop(key)
        )
    return changed


# --- tensors


def damaged_tensors(content: bytes, chance: Random) -> bytes:
    """Load a checkpoint, damage one value of it, and save it in the same form."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load, save

    if not content.startswith((b"PK", b"\x80")):
        changed = damaged_value(load(content), chance, tensor_junk)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__")
        assert safe_open is not None
        return save({str(name): tensor for name, tensor in changed.items()}, metadata)
    value = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    zipped = content.startswith(b"PK")
    torch.save(damaged_value(dict(value), chance, tensor_junk), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def tensor_junk(old: Any, chance: Random) -> Any:
    """Return another tensor than was expected, or none."""
    import torch

    if not isinstance(old, torch.Tensor) or chance.random() < 0.15:
        return json_junk(0, chance)
    value = old.detach().clone()
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64, torch.complex64)
    kinds += (torch.int64, torch.int32, torch.uint8, torch.bool, torch.uint16)
    ways: list[Callable[[], Any]] = [
        lambda: value.to(chance.choice(kinds)),
        lambda: value.float() * chance.choice((float("nan"), float("inf"), -1.0, 1e30, 0.0)),
        lambda: value - 1,
        lambda: value.flatten(),
        lambda: value.flatten()[:0],
        lambda: value.flatten()[0],
        lambda: value[None],
        lambda: value[..., :-1].contiguous(),
        lambda: torch.cat([value, value]),
        lambda: value.transpose(0, -1).contiguous(),
        lambda: torch.zeros(1, dtype=value.dtype).expand(10**5, 10**5),
        lambda: value.to_sparse(),
        lambda: torch.empty(value.shape, dtype=value.dtype, device="meta"),
        lambda: torch.nested.nested_tensor([value.float(), value.float()]),
        lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda: value.float().to_mkldnn(),
    ]
    return chance.choice(ways)()


def damaged_safetensors(content: bytes, chance: Random) -> bytes:
    """Damage the header, and put its length right unless that is what is damaged."""
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]
    if chance.random() < 0.2:
        return (chance.choice(NUMBERS) % 2**64).to_bytes(8, "little") + header + rest
    header = damaged_json(header, chance)
    return len(header).to_bytes(8, "little") + header + rest


def damaged_pickle(content: bytes, chance: Random) -> bytes:
    """Swap a name or a number in a pickle, or put code into it."""
    if chance.random() < 0.1:
        return f"cbuiltins\nopen\n(S'{PLANTED}'\nS'w'\ntR.".encode()
    names = re.findall(rb"c(\w[\w.]*\n\w+)\n", content)
    if names and chance.random() < 0.5:
        others = (
            b"torch\nload",
            b"builtins\neval",
            b"torch\nDoubleStorage",
            b"torch\nQInt8Storage",
            b"torch\nfloat8",
        )
        others += (b"collections\nOrderedDict", b"torch._utils\n_rebuild_sparse_tensor", b"posix\nsystem")
        old = chance.choice(names)
        return content.replace(old, chance.choice((*others, *names)), chance.choice((1, 1000)))
    small = [at for at, byte in enumerate(content) if byte in b"KMJ"]  # numbers of one, two and four bytes
    at = chance.choice(small)
    return content[: at + 1] + bytes([chance.choice((0, 1, 127, 255))]) + content[at + 2 :]


# --- archives


def damaged_zip(content: bytes, chance: Random) -> bytes:
    """Damage, remove, rename or double an entry, or make a bomb of it, and pack all of it again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            return damaged_bytes(content, chance)  # a bomb already
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    at = chance.randrange(len(entries))
    pickles = [index for index, (name, _) in enumerate(entries) if name.endswith(".pkl")]
    if pickles and chance.random() < 0.5:
        at = chance.choice(pickles)
    name, data = entries[at]
    kind = chance.choice(("damage", "damage", "damage", "damage", "remove", "rename", "double", "bomb"))
    method = zipfile.ZIP_STORED
    if kind == "damage":
        way = damaged_pickle if name.endswith(".pkl") and chance.random() < 0.6 else damaged_bytes
        entries[at] = name, way(data, chance)
    elif kind == "remove":
        entries.pop(at)
    elif kind == "rename":
        entries[at] = (
            chance.choice(("../x", "data.pkl", f"{name}0", name.upper(), "/x", "a/constants.pkl")),
            data,
        )
    elif kind == "double":
        entries.append((name, damaged_bytes(data, chance)))
    else:
        entries[at], method = (name, bytes(300_000_000)), zipfile.ZIP_DEFLATED
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


# --- images and arrays


def damaged_png(content: bytes, chance: Random) -> bytes:
    """Damage, remove, move, double or add a chunk; the checksums are right."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    index = chance.randrange(len(chunks))
    kind, data = chunks[index]
    what = chance.choice(("damage", "header", "remove", "move", "double", "bomb", "add"))
    if what == "damage":
        chunks[index] = kind, damaged_bytes(data, chance)
    elif what == "header":
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        which = chance.randrange(7)
        fields[which] = chance.choice(NUMBERS) % (2**32 if which < 2 else 256)
        if chance.random() < 0.4:
            fields[2:4] = chance.choice(((1, 0), (2, 3), (8, 3), (8, 4), (16, 2), (16, 6), (16, 0)))
        chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *fields)
    elif what == "remove":
        chunks.pop(index)
    elif what == "move":
        chunks.insert(chance.randrange(len(chunks)), chunks.pop(index))
    elif what == "double":
        chunks.insert(chance.randrange(len(chunks)), (kind, data))
    elif what == "bomb":
        zeros = zlib.compress(bytes(100_000_000), 1)
        name = chance.choice((b"IDAT", b"zTXt", b"iCCP", b"iTXt"))
        head = {b"IDAT": b"", b"iTXt": b"a\0\1\0\0\0"}.get(name, b"a\0\0")
        chunks.insert(1, (name, head + zeros))
    else:
        name = chance.choice(
            (b"tRNS", b"gAMA", b"acTL", b"fcTL", b"eXIf", b"pHYs", b"sRGB", b"iCCP", b"PLTE")
        )
        chunks.insert(
            chance.randrange(1, len(chunks)), (name, chance.randbytes(chance.choice((0, 1, 8, 26, 99))))
        )
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return content[:8] + b"".join(packed)


def damaged_tiff(content: bytes, chance: Random) -> bytes:
    """Change tag, type, count or value of an entry of the first directory."""
    data = bytearray(content)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entry = start + 2 + 12 * chance.randrange(count)
    form, place = chance.choice((("<H", 0), ("<H", 2), ("<I", 4), ("<I", 8), ("<I", 8)))
    number = chance.choice(
        (*NUMBERS, 3, 4, 5, 7, 8, 34712, 258, 262, 277, 338, 339)
    ) % 256 ** struct.calcsize(form)
    struct.pack_into(form, data, entry + place, number)
    return bytes(data)


def damaged_npy(content: bytes, chance: Random) -> bytes:
    """Write another type, shape or order into the header."""
    size = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + size].decode("latin-1")
    types = (
        "|O",
        "<f8",
        ">f4",
        "<f2",
        "<i8",
        "|b1",
        "<c8",
        "|V10",
        "<U5",
        "<M8[s]",
        "[('a', '<f4')]",
        "",
        "x" * 9000,
    )
    shapes = (
        "(0,)",
        "()",
        "(1,)",
        "(2**40,)",
        "(99999, 99999)",
        "(-1, 3)",
        "None",
        "(1, 2, 3)",
        "(9" * 3000,
        "(1.5, 2)",
    )
    if chance.random() < 0.5:
        header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': '{chance.choice(types)}'", header)
    else:
        header = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {chance.choice(shapes)}", header)
    packed = header.encode("latin-1")
    return content[:8] + len(packed).to_bytes(2, "little") + packed + content[10 + size :]


# --- exported models


def damaged_onnx(content: bytes, chance: Random) -> bytes:
    """Change the card, an input, an output or a node of a model."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    kind = chance.choice(("card", "card", "input", "output", "node", "weights", "version"))
    if kind == "card":
        entry = chance.choice(model.metadata_props)
        entry.value = damaged_json(entry.value.encode(), chance).decode("utf-8", "replace")
    elif kind in ("input", "output"):
        value = chance.choice(graph.input if kind == "input" else graph.output)
        tensor = value.type.tensor_type
        changes: list[Callable[[], Any]] = [
            lambda: setattr(value, "name", "other"),
            lambda: setattr(tensor, "elem_type", chance.choice((0, 1, 7, 8, 10, 99))),
            lambda: tensor.ClearField("shape"),
            lambda: tensor.shape.dim.add(),
            lambda: setattr(
                chance.choice(tensor.shape.dim), "dim_value", chance.choice((-1, 0, 1, 3, 2**40))
            ),
        ]
        chance.choice(changes)()
    elif kind == "node":
        node = chance.choice(graph.node)
        if chance.random() < 0.5:
            node.op_type = chance.choice(("Loop", "Identity", "Nothing", "MatMul", "Reshape"))
        else:
            del node.input[:]
    elif kind == "weights":
        tensor = chance.choice(graph.initializer)
        if chance.random() < 0.5:
            tensor.dims[:] = [chance.choice((0, 1, 2**40))] * len(tensor.dims)
        else:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=chance.choice(("/dev/zero", "../x", "x")))
    else:
        model.ir_version = chance.choice((0, 99, 2**40))
    return model.SerializeToString()


def damaged_xml(content: bytes, chance: Random) -> bytes:
    """Change an attribute; the card is one of them."""
    text = content.decode()
    found = list(re.finditer(r'="([^"]*)"', text))
    cards = [match for match in found if "{" in match[1]]
    if cards and chance.random() < 0.5:
        match = chance.choice(cards)
        new = damaged_json(html.unescape(match[1]).encode(), chance).decode("utf-8", "replace")
    else:
        match = chance.choice(found)
        new = chance.choice(TEXTS) if chance.random() < 0.4 else str(chance.choice(NUMBERS))
    start, end = match.span(1)
    return (text[:start] + html.escape(new) + text[end:]).encode("utf-8", "replace")
