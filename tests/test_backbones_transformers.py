"""Backbones give what `transformers` computes: independent implementations of the published models."""

import json
from pathlib import Path

import pytest
import torch

from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.vit import PlainViT
from anomalyclip.backbones.weights import ViTWeights, read_any
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.weights import read_weights
from anomalyclip.errors import AnomalyCLIPError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # importing it takes seconds

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "intermediate_size": 192,  # ViT's; DINOv2 has a ratio
}
SIZES = [(56, 56), (70, 70), (98, 42), (28, 84)]


def random(model):
    """Large random values in every tensor: at their initial values norms, registers and scales would show nothing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
    return model.eval()


def ours(folder: Path) -> PlainViT:
    weights = read_any(folder)
    assert isinstance(weights, ViTWeights)
    return form_of(weights.config).frozen(weights.config, weights.state_dict)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Dinov2", {}),
        ("Dinov2WithRegisters", {"num_register_tokens": 2}),
        ("ViT", {}),
        ("ViT", {"layer_norm_eps": 0.1}),
        ("Dinov2", {"use_swiglu_ffn": True}),
        ("DINOv3ViT", {}),
        ("DINOv3ViT", {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu"}),
        ("DINOv3ViT", {"num_register_tokens": 4, "key_bias": True, "query_bias": False, "rope_theta": 50.0}),
    ],
)
def test_tokens_of_every_block_equal_those_of_transformers(name, more, size, tmp_path):
    model = random(
        getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SMALL, **more))
    )
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    flexible = {"interpolate_pos_encoding": True} if name == "ViT" else {}
    with torch.inference_mode():
        theirs = model(pixel_values=pixels, output_hidden_states=True, **flexible)
        tower = ours(tmp_path)
        positions = tower.positions(*(side // tower.patch_size for side in size))
        tokens = tower.run(tower.embed(pixels, positions), positions=positions, plain=[1, 2, 3])
        registers = more.get("num_register_tokens", 0)
        for block, found in tokens.plain.items():
            expected = theirs.hidden_states[block]
            expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], dim=1)
            if block < 3:
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        last = tower.ln_post(tokens.plain[3])
        expected = theirs.last_hidden_state
        expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], dim=1)
        torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tower.ln_post(tokens.cls), expected[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"use_gated_mlp": True, "hidden_act": "silu"}, "gated = 192, its tensors say 0"),
        ({"num_hidden_layers": 4}, "vision_layers = 4, its tensors say 3"),
        ({"num_register_tokens": 4}, "registers = 4, its tensors say 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; expected gelu"),
        ({"key_bias": True}, "has no layer.0.attention.k_proj.bias"),
        ({"num_attention_heads": 0}, "its configuration is invalid"),
        ({"rope_theta": 0.0}, "4 periods; expected 4 positive numbers"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(more, message, tmp_path):
    config = transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=2)
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    with pytest.raises(AnomalyCLIPError, match=message):
        read_any(tmp_path)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_patches_and_texts_of_a_clip_equal_those_of_transformers(activation, tmp_path):
    """Plain CLIP, without the local path: two heads in either tower, texts that end at different places."""
    vision = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 192}
    text = vision | {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 100}
    text |= {"max_position_embeddings": 16, "bos_token_id": 98, "eos_token_id": 99}
    config = transformers.CLIPConfig(
        vision_config=vision | {"image_size": 56, "patch_size": 14, "hidden_act": activation},
        text_config=text | {"hidden_act": activation},
        projection_dim=24,
    )
    model = random(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.config.quick_gelu == (activation == "quick_gelu")
    clip, visual = CLIP.frozen(weights.config, weights.state_dict), model.vision_model
    draw = torch.Generator().manual_seed(1)
    pixels, ids = torch.randn(2, 3, 56, 56, generator=draw), torch.randint(0, 98, (2, 9), generator=draw)
    ends = torch.tensor([8, 5])
    ids[:, 0], ids[torch.arange(2), ends] = 98, 99
    with torch.inference_mode():
        theirs = visual(pixel_values=pixels, output_hidden_states=True)
        image = model.visual_projection(theirs.pooler_output)
        words = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        tokens = clip.visual.run(clip.visual.embed(pixels), plain=[1, 2, 3])
        own_words = clip.encode_text(clip.token_embedding(ids), ends)
    near = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(clip.visual.project(tokens.cls), image, **near)
    for block, found in tokens.plain.items():
        torch.testing.assert_close(found, theirs.hidden_states[block], **near)
    torch.testing.assert_close(own_words, words, **near)
