"""Damaged prompts: whatever a file says of itself, it gives prompts that work, or one message that names it."""

import io
import json
import random
import re

import pytest
import torch
from safetensors.torch import save

from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import FORMAT, load_prompts

NAMES = ("normal", "abnormal", "token_ids", "deep_tokens.0")


@pytest.fixture(scope="session")
def tensors(paper_case):
    prompts = paper_case.prompts
    deep = {f"deep_tokens.{i}": tokens.clone() for i, tokens in enumerate(prompts.deep_tokens)}
    return {"normal": prompts.normal, "abnormal": prompts.abnormal, "token_ids": prompts.token_ids, **deep}


@pytest.fixture(scope="session")
def state(tensors):
    """The same in the published form."""
    ids = tensors["token_ids"].int()
    deep = {
        name.replace("deep_tokens", "compound_prompts_text"): t
        for name, t in tensors.items()
        if "deep" in name
    }
    return {
        "ctx_pos": tensors["normal"][None, None],
        "ctx_neg": tensors["abnormal"][None, None],
        "tokenized_prompts_pos": ids[0][None, None],
        "tokenized_prompts_neg": ids[1][None, None],
        **deep,
    }


def write(path, tensors, **header):
    path.write_bytes(save(tensors, {"format": FORMAT, "info": "{}", **header}))
    return path


def publish(path, state):
    torch.save({"prompt_learner": state}, path)
    return path


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ("[1, 2]", "info is not an object of texts"),
        ("3", "info is not an object of texts"),
        ('{"trained_on": 3}', "info is not an object of texts"),
        ("{", "info is not JSON"),
        ("[" * 100_000, "info is not JSON (nested too deeply)"),
        ('{"a": NaN}', "info is not JSON (NaN is not a JSON number)"),
    ],
)
def test_info_that_is_no_object_of_texts_is_named(info, says, tensors, tmp_path):
    path = write(tmp_path / "prompts.safetensors", tensors, info=info)
    with pytest.raises(AnomalyCLIPError, match=rf"prompts\.safetensors: damaged prompts: {re.escape(says)}"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token_ids": lambda t: -t}, "a token id of -49407"),
        ({"token_ids": lambda t: t.float()}, "token ids of torch.float32; expected int64"),
        ({"token_ids": lambda t: t.bool()}, "token ids of torch.bool"),
        ({"token_ids": lambda t: t[:1]}, "do not match"),
        ({"token_ids": lambda t: t[:, :0]}, "do not match"),
        ({"token_ids": lambda t: t.flatten()}, "do not match"),
        ({"normal": lambda t: t.to(torch.float8_e4m3fn)}, "vectors of torch.float8_e4m3fn; expected float32"),
        ({"normal": lambda t: t.long()}, "vectors of torch.int64"),
        ({"abnormal": lambda t: t[:-1]}, "do not match"),
        ({"normal": lambda t: t[:0], "abnormal": lambda t: t[:0]}, "do not match"),
        ({"deep_tokens.0": lambda t: t[:, :-1]}, "do not match"),
        ({"deep_tokens.0": lambda t: t * torch.inf}, "NaN or infinite"),
        ({"normal": lambda t: t.double() + 1e300}, "NaN or infinite"),
    ],
)
def test_tensors_that_cannot_be_prompts_are_named(change, says, tensors, tmp_path):
    changed = {name: change.get(name, lambda t: t)(tensor).contiguous() for name, tensor in tensors.items()}
    with pytest.raises(AnomalyCLIPError, match=rf"prompts\.safetensors: .*{re.escape(says)}"):
        load_prompts(write(tmp_path / "prompts.safetensors", changed))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenized_prompts_neg": lambda t: t[..., :-1]}, "token ids; expected as many of both"),
        ({"tokenized_prompts_neg": lambda t: None}, "not a prompts checkpoint"),
        ({"ctx_pos": lambda t: t.to_sparse()}, "is sparse"),
        ({"ctx_pos": lambda t: t.to("meta")}, "has no content"),
        ({"ctx_pos": lambda t: t.to(torch.complex64)}, "vectors of torch.complex64"),
        ({"ctx_pos": lambda t: t[:1, :1, :1].expand(1, 10**5, 10**5, t.shape[-1])}, "is not all there"),
        ({"compound_prompts_text.0": lambda t: "text"}, "compound_prompts_text.0 missing"),
        ({"compound_prompts_text.0": lambda t: [t]}, "compound_prompts_text.0 missing"),
    ],
)
def test_published_tensors_that_cannot_be_prompts_are_named(change, says, state, tmp_path):
    changed = {name: change.get(name, lambda t: t)(tensor) for name, tensor in state.items()}
    with pytest.raises(AnomalyCLIPError, match=rf"prompts\.pth: .*{re.escape(says)}"):
        load_prompts(publish(tmp_path / "prompts.pth", changed))


def test_keys_that_are_no_text_do_no_harm(state, tensors, tmp_path):
    prompts = load_prompts(publish(tmp_path / "prompts.pth", {**state, 7: torch.zeros(1), (1, 2): None}))
    assert torch.equal(prompts.normal, tensors["normal"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_read_as_float32(dtype, tensors, tmp_path):
    changed = {name: t if name == "token_ids" else t.to(dtype) for name, t in tensors.items()}
    prompts = load_prompts(write(tmp_path / "prompts.safetensors", changed))
    assert {tensor.dtype for tensor in (prompts.normal, prompts.abnormal, *prompts.deep_tokens)} == {
        torch.float32
    }


def test_hundreds_of_random_damages_give_prompts_that_work_or_one_message(
    tensors, state, tiny_clip, tmp_path
):
    whole = {
        "prompts.safetensors": write(tmp_path / "prompts.safetensors", tensors).read_bytes(),
        "prompts.pth": publish(tmp_path / "prompts.pth", state).read_bytes(),
    }
    draw = random.Random(15)
    said = []
    for number in range(500):
        name = draw.choice(list(whole))
        kind = draw.choice(("bytes", "tensors"))
        content = (
            damaged_bytes(whole[name], draw)
            if kind == "bytes"
            else damaged_tensors(name, tensors, state, draw)
        )
        (tmp_path / name).write_bytes(content)
        try:
            features = load_prompts(tmp_path / name).text_features(tiny_clip)
        except AnomalyCLIPError as error:
            said.append((name, str(error)))
        else:
            assert features.shape == (2, tiny_clip.config.embed_dim), number
    assert 250 < len(said) < 500
    assert [
        message
        for name, message in said
        if name not in message and not re.search("another backbone|do not fit", message)
    ] == []


def damaged_bytes(content, draw):
    """Bits flipped, most of them where the file says what it holds; or cut; or a part of it twice."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        where = draw.randrange(draw.choice((8, 200, 1200, len(changed))))
        changed[where] = draw.choice((0, 255, ord("9"), ord("-"), ord('"'), draw.randrange(256)))
    if draw.random() < 0.2:
        del changed[draw.randrange(len(changed)) :]
    if draw.random() < 0.1:
        changed[50:50] = changed[:400]
    return bytes(changed)


CHANGES = (
    lambda t: -t,
    lambda t: t.float(),
    lambda t: t.long(),
    lambda t: t.bool(),
    lambda t: t.half(),
    lambda t: t.double() * 1e308,
    lambda t: t[:0],
    lambda t: t[..., :-1],
    lambda t: t[..., :1],
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: torch.cat([t, t]),
    lambda t: t.float() * torch.nan,
    lambda t: t + 10**6,
    lambda t: torch.zeros_like(t),
    lambda t: t.float().to(torch.float8_e5m2),
    lambda t: torch.zeros(()),
)
ONLY_PUBLISHED = (
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: t.float().to(torch.complex64),
    lambda t: t.flatten()[:1].expand(10**7),
    lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.T if t.dim() == 2 else t,
    lambda t: None,
    lambda t: {"a": t},
    lambda t: 7,
)


def damaged_tensors(name, tensors, state, draw):
    published = name.endswith(".pth")
    changed = dict(state if published else tensors)
    for _ in range(draw.choice((1, 1, 2))):
        key = draw.choice(list(changed))
        value = changed.pop(key)
        what = draw.random()
        if what < 0.15:
            continue
        if what < 0.3:
            changed[
                draw.choice([7, None, "x", "deep_tokens.9", "compound_prompts_text.9"]) if published else "x"
            ] = value
            continue
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
            value = draw.choice(CHANGES + ONLY_PUBLISHED * published)(value)
        changed[key] = value if published else value.contiguous().clone()
    if not published:
        header = {
            "format": draw.choice([FORMAT] * 9 + [""]),
            "info": draw.choice(["{}", "[]", "{", '{"a": [{}]}']),
        }
        return save(changed, header)
    file = io.BytesIO()
    whole = [changed, list(changed.values()), {"prompt_learner": changed}, {"prompt_learner": list(changed)}]
    torch.save(draw.choice([*whole, *[{"prompt_learner": changed}] * 12]), file)
    return file.getvalue()


def test_a_file_whose_header_has_other_types_is_named(tensors, tmp_path):
    content = write(tmp_path / "prompts.safetensors", tensors).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for change in (
        {"__metadata__": 3},
        {"__metadata__": {"format": 3}},
        {"normal": []},
        {"normal": {"dtype": "F4"}},
    ):
        text = json.dumps({**header, **change}).encode()
        (tmp_path / "prompts.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + content[8 + length :]
        )
        with pytest.raises(AnomalyCLIPError, match=r"prompts\.safetensors: "):
            load_prompts(tmp_path / "prompts.safetensors")
