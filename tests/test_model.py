"""The frozen model, against what the published code computed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalyclip.clip.model import CLIP, CLIPConfig

SMALL = CLIPConfig(16, 28, 14, 64, 4, 1, 64, 3, 1, 20, 50)


@pytest.fixture
def small() -> CLIP:
    torch.manual_seed(0)
    return CLIP(SMALL).requires_grad_(False).eval()


def test_patch_features_of_every_layer_equal_the_published_ones(golden, tiny_clip):
    pixels = torch.from_numpy(golden.arrays["pixel_values"])
    features = tiny_clip.encode_image(pixels, layers=golden.layers, dpam_layers=golden.dpam_layers)
    assert sorted(features.patches) == golden.layers
    for layer in golden.layers:
        published = golden.arrays[f"patch_features_{layer}"]
        np.testing.assert_allclose(features.patches[layer].numpy(), published, atol=1e-5)


def test_image_features_equal_the_published_ones(golden, tiny_clip):
    pixels = torch.from_numpy(golden.arrays["pixel_values"])
    features = tiny_clip.encode_image(pixels, layers=golden.layers, dpam_layers=golden.dpam_layers)
    normalised = F.normalize(features.image, dim=-1).numpy()
    np.testing.assert_allclose(normalised, golden.arrays["image_features"], atol=1e-5)


def test_an_image_alone_has_the_features_it_has_in_a_batch(small):
    pixels = torch.randn(3, 3, 42, 42)
    batch = small.encode_image(pixels, layers=[2, 4], dpam_layers=2)
    for i in range(3):
        alone = small.encode_image(pixels[i : i + 1], layers=[2, 4], dpam_layers=2)
        torch.testing.assert_close(alone.image[0], batch.image[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.patches[4][0], batch.patches[4][i], atol=1e-5, rtol=1e-4)


def test_the_local_path_changes_patches_and_leaves_the_image_feature_alone(small):
    pixels = torch.randn(1, 3, 28, 28)
    plain = small.encode_image(pixels, layers=[4], dpam_layers=0)
    local = small.encode_image(pixels, layers=[4], dpam_layers=3)
    torch.testing.assert_close(plain.image, local.image, atol=1e-5, rtol=1e-4)
    assert (plain.patches[4] - local.patches[4]).abs().max() > 0.1


def test_without_a_local_path_patches_are_those_of_plain_clip(small):
    """Written out once more with PyTorch's own layers, as an independent statement of what CLIP is."""
    pixels = torch.randn(2, 3, 28, 28)
    visual = small.visual
    x = visual.embed(pixels)
    for block in visual.transformer.resblocks:
        attention = torch.nn.MultiheadAttention(64, 1, batch_first=True)
        attention.in_proj_weight, attention.in_proj_bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        attention.out_proj = block.attn.out_proj
        h = block.ln_1(x)
        x = x + attention(h, h, h, need_weights=False)[0]
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    features = small.encode_image(pixels, layers=[4], dpam_layers=0)
    torch.testing.assert_close(features.patches[4], visual.ln_post(x) @ visual.proj, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.image, x[:, 0] @ visual.proj, atol=1e-5, rtol=1e-4)


def test_the_image_feature_does_not_depend_on_which_layers_are_read(small):
    pixels = torch.randn(1, 3, 28, 28)
    only_early = small.encode_image(pixels, layers=[1], dpam_layers=0)  # the last block runs for CLS alone
    also_last = small.encode_image(pixels, layers=[1, 4], dpam_layers=0)
    torch.testing.assert_close(only_early.image, also_last.image, atol=1e-5, rtol=1e-4)


def test_the_activation_follows_the_configuration():
    config = CLIPConfig(16, 28, 14, 64, 1, 1, 64, 1, 1, 20, 50, quick_gelu=False)
    torch.manual_seed(0)
    clip = CLIP(config).eval()
    mlp = clip.visual.transformer.resblocks[0].mlp
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(mlp(x), mlp.c_proj(F.gelu(mlp.c_fc(x))), atol=1e-6, rtol=1e-5)


def test_a_second_image_size_does_not_change_the_first(small):
    first = torch.randn(1, 3, 42, 42)
    before = small.encode_image(first, layers=[4], dpam_layers=3)
    table = small.visual.positional_embedding.clone()
    small.encode_image(torch.randn(1, 3, 70, 70), layers=[4], dpam_layers=3)
    after = small.encode_image(first, layers=[4], dpam_layers=3)
    assert torch.equal(small.visual.positional_embedding, table)
    assert torch.equal(before.patches[4], after.patches[4])


def test_positions_are_resized_bilinearly_and_kept_for_the_native_size(small):
    visual = small.visual
    assert visual.positions(2, 2) is visual.positional_embedding
    resized = visual.positions(4, 4)
    assert torch.equal(resized[0], visual.positional_embedding[0])
    grid = visual.positional_embedding[1:].view(2, 2, -1)
    torch.testing.assert_close(
        resized[1], grid[0, 0]
    )  # a corner keeps its value (align_corners=False clamps)
    torch.testing.assert_close(resized[2], 0.75 * grid[0, 0] + 0.25 * grid[0, 1])


def test_nothing_after_the_end_token_changes_a_text(small):
    embeddings = torch.randn(2, 20, 64)
    end = torch.tensor([5, 8])
    whole = small.encode_text(embeddings, end)
    cut = small.encode_text(embeddings[:, :9], end)
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-4)


def test_deep_tokens_overwrite_the_positions_after_the_start_token_before_block_two(small):
    embeddings = torch.randn(1, 10, 64)
    end = torch.tensor([9])
    tokens = torch.randn(2, 64)
    changed = small.encode_text(embeddings, end, deep_tokens=[tokens])

    x = embeddings + small.positional_embedding[:10]
    blocks = small.transformer.resblocks
    x = blocks[0](x, causal=True).clone()
    x[:, 1:3] = tokens.half().float()
    for block in list(blocks)[1:]:
        x = block(x, causal=True)
    expected = small.ln_final(x[:, 9]) @ small.text_projection
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-4)
    assert (changed - small.encode_text(embeddings, end)).abs().max() > 1e-3


def test_frozen_weights_have_no_gradient_and_are_float32(tiny_clip):
    assert not any(parameter.requires_grad for parameter in tiny_clip.parameters())
    assert {parameter.dtype for parameter in tiny_clip.parameters()} == {torch.float32}


def test_the_model_can_be_trained():
    """The recipe of the embedded backbone trains through the same code."""
    torch.manual_seed(0)
    clip = CLIP(SMALL)
    clip.encode_image(torch.randn(2, 3, 42, 42), layers=[4], dpam_layers=3).patches[4].sum().backward()
    clip.encode_text(torch.randn(1, 5, 64), torch.tensor([4])).sum().backward()
    for name in (
        "visual.positional_embedding",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "text_projection",
    ):
        gradient = clip.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
