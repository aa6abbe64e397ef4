"""The frozen model, against what the published code computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomalyclip.clip.model import CLIP, CLIPConfig, LocalPath
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.images import MEAN, STD

SMALL = CLIPConfig(16, 28, 14, 64, 4, 1, 64, 3, 1, 20, 50)
TWO_HEADS = replace(SMALL, vision_heads=2)


@pytest.fixture
def small() -> CLIP:
    torch.manual_seed(0)
    return CLIP(SMALL).requires_grad_(False).eval()


@pytest.fixture
def two_heads() -> CLIP:
    """With biases that are not zero either, as in a trained model."""
    torch.manual_seed(1)
    clip = CLIP(TWO_HEADS)
    for block in clip.visual.transformer.resblocks:
        torch.nn.init.normal_(block.attn.in_proj_bias)
    return clip


def by_hand(visual, x, *, heads, path=None):
    """The tokens of both paths after each block, with PyTorch's own attention and dense softmaxes.

    An independent statement of what CLIP and DPAM are; `VisionTransformer.run` has neither.
    """
    plain, local, second, blocks = {}, {}, x, visual.transformer.resblocks
    for number, block in enumerate(blocks, start=1):
        h = block.ln_1(x)
        if path is not None and number > len(blocks) - path.blocks:
            second = second + local_attention(block.attn, h, heads, path.attends)
        attention = torch.nn.MultiheadAttention(h.shape[-1], heads, batch_first=True)
        attention.in_proj_weight, attention.in_proj_bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        attention.out_proj = block.attn.out_proj
        x = x + attention(h, h, h, need_weights=False)[0]
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
        if path is None or number <= len(blocks) - path.blocks:
            second = x
        plain[number], local[number] = x, second
    return plain, local


def local_attention(attn, h, heads, attends):
    """The sum of softmax(X X^T / sqrt(d)) V over the chosen projections X, a matrix for each head; projected once."""
    batch, count, width = h.shape
    split = F.linear(h, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (part.view(batch, count, heads, -1).transpose(1, 2) for part in split)
    scale = (width // heads) ** -0.5
    weights = [
        (x @ x.mT * scale).softmax(dim=-1) for x in ({"q": q, "k": k, "v": v}[name] for name in attends)
    ]
    return attn.out_proj((sum(weights) @ v).transpose(1, 2).reshape(batch, count, width))


def normalised(pixels):
    """Bytes (B, S, S, 3) as the image tower takes them."""
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)


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
    pixels = torch.randn(2, 3, 28, 28)
    x = by_hand(small.visual, small.visual.embed(pixels), heads=1)[0][4]
    features = small.encode_image(pixels, layers=[4], dpam_layers=0)
    torch.testing.assert_close(
        features.patches[4], small.visual.ln_post(x) @ small.visual.proj, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(features.image, x[:, 0] @ small.visual.proj, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attends", ["v", "qkv", "k", "kq"])
@pytest.mark.parametrize("blocks", [0, 1, 3, 4])
def test_the_local_path_adds_what_its_projections_attending_to_themselves_take_from_the_values(
    two_heads, blocks, attends
):
    visual, path = two_heads.visual, LocalPath(blocks, attends)
    tokens = torch.randn(2, 10, 64)
    plain, local = by_hand(visual, tokens, heads=2, path=path)
    every = visual.run(tokens, plain=[1, 2, 3, 4], local=[1, 2, 3, 4], path=path)
    for number in (1, 2, 3, 4):
        torch.testing.assert_close(every.plain[number], plain[number], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(every.local[number], local[number], atol=1e-5, rtol=1e-4)
    # Nothing but CLS is asked of the original path here, so that its last block has one query.
    last = visual.run(tokens, local=[4], path=path)
    torch.testing.assert_close(last.local[4], local[4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last.cls, plain[4][:, 0], atol=1e-5, rtol=1e-4)
    assert (last.plain, list(last.local)) == ({}, [4])


def test_asking_for_more_changes_neither_cls_nor_the_local_tokens(golden, tiny_clip):
    visual, path = tiny_clip.visual, LocalPath(golden.dpam_layers)
    tokens = visual.embed(torch.from_numpy(golden.arrays["pixel_values"]))
    least = visual.run(tokens, local=golden.layers, path=path)
    for more in ({"plain": [24]}, {"plain": [3, 12, 24]}, {"local": [*golden.layers, 1, 20]}):
        found = visual.run(tokens, **{"local": golden.layers, "path": path} | more)
        torch.testing.assert_close(found.cls, least.cls, atol=1e-5, rtol=1e-4)
        for layer in golden.layers:
            torch.testing.assert_close(found.local[layer], least.local[layer], atol=1e-5, rtol=1e-4)
    everywhere = visual.run(tokens, plain=range(1, 25), local=range(1, 25), path=path)
    torch.testing.assert_close(everywhere.plain[24][:, 0], least.cls, atol=1e-5, rtol=1e-4)
    for layer in golden.layers:
        published = golden.arrays[f"patch_features_{layer}"]
        np.testing.assert_allclose(visual.project(everywhere.local[layer]).numpy(), published, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({}, 1),
        ({"local": [3]}, 1),
        ({"local": [4]}, 10),
        ({"local": [4], "path": LocalPath(2)}, 1),
        ({"local": [4], "path": LocalPath(2, "qkv")}, 1),
        ({"plain": [4], "path": LocalPath(2)}, 10),
    ],
)
def test_the_last_block_runs_for_cls_alone_unless_its_other_tokens_are_asked_for(two_heads, asked, count):
    entered = []
    last = two_heads.visual.transformer.resblocks[3]
    last.ln_2.register_forward_hook(lambda module, arguments, result: entered.append(result.shape))
    two_heads.visual.run(torch.randn(2, 10, 64), **asked)
    assert entered == [(2, count, 64)]


def test_the_plain_tokens_are_raw_and_know_nothing_of_the_local_path(two_heads):
    tokens = torch.randn(2, 10, 64)
    plain = by_hand(two_heads.visual, tokens, heads=2)[0]
    for path in (LocalPath(0), LocalPath(3), LocalPath(4, "qkv")):
        found = two_heads.visual.run(tokens, plain=[2, 4], path=path)
        assert list(found.plain) == [2, 4]
        for number in (2, 4):
            torch.testing.assert_close(found.plain[number], plain[number], atol=1e-5, rtol=1e-4)


def test_a_subset_of_the_tokens_is_a_smaller_image_to_the_blocks(two_heads):
    visual = two_heads.visual
    chosen = visual.embed(torch.randn(2, 3, 42, 42))[:, [0, 5, 3, 9]]
    plain = by_hand(visual, chosen, heads=2)[0]
    found = visual.run(chosen, plain=[4])
    torch.testing.assert_close(found.plain[4], plain[4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(visual.run(chosen).cls, plain[4][:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [2, 3])
def test_windows_of_patches_have_the_embeddings_of_public_winclip_code(rivals, tiny_clip, side):
    """Accurate-WinCLIP-pytorch: CLS and the patches of a window through plain CLIP, `ln_post` and the projection."""
    visual = tiny_clip.visual
    tokens = visual.embed(normalised(rivals["pixels"]))
    whole = visual.project(visual.run(tokens).cls)
    np.testing.assert_allclose(whole.numpy(), rivals["image_embedding"], atol=2e-5)
    windows = rivals[f"windows_{side}"].astype(np.int64)
    assert windows.shape == ((5 - side) ** 2, side**2)
    for number, patches in enumerate(windows):
        chosen = tokens[:, [0, *(patches + 1)]]
        embedding = visual.project(visual.run(chosen).cls)
        published = rivals[f"window_embedding_{side}"][:, number]
        np.testing.assert_allclose(embedding.numpy(), published, atol=2e-5)


def test_six_local_blocks_are_clip_surgery(rivals, tiny_clip):
    """Its published features: patches of the local path, CLS of the original one, all through `ln_post`."""
    visual = tiny_clip.visual
    found = visual.run(visual.embed(normalised(rivals["pixels"][1:])), local=[24], path=LocalPath(6))
    tokens = torch.cat([found.cls[:, None], found.local[24][:, 1:]], dim=1)
    np.testing.assert_allclose(visual.project(tokens).numpy(), rivals["surgery_features"], atol=2e-5)


@pytest.mark.parametrize("attends", ["", "x", "vv", "V", "q k"])
def test_a_local_path_that_does_not_exist_is_refused(attends):
    with pytest.raises(AnomalyCLIPError, match=rf"local attention '{attends}': expected some of q, k and v"):
        LocalPath(3, attends)


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


@pytest.mark.parametrize("path", [LocalPath(0), LocalPath(2), LocalPath(4, "qkv")])
def test_gradients_are_those_of_the_blocks_written_out(two_heads, path):
    """Of all weights that both paths use, and of the tokens."""
    visual, draw = two_heads.visual, torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 5, 64, generator=draw, requires_grad=True)
    mix = torch.randn(2, 5, 64, generator=draw)
    weights = [tokens, *visual.transformer.parameters()]

    def gradients(cls, local):
        return torch.autograd.grad((local * mix).sum() + (cls * mix[:, 0]).sum(), weights)

    found = visual.run(tokens, local=[4], path=path)
    plain, local = by_hand(visual, tokens, heads=2, path=path)
    pairs = zip(gradients(found.cls, found.local[4]), gradients(plain[4][:, 0], local[4]), strict=True)
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
        assert expected.abs().max() > 0
