"""Backbones of every published form give what their own packages compute, or one message that says what is wrong."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from anomalyclip.backbones.config import HALF, IMAGENET_MEAN, ViTConfig, periods, tensor_shapes
from anomalyclip.backbones.forms import timm
from anomalyclip.backbones.forms.common import IMAGENET, Settings, normalisation_by_name
from anomalyclip.backbones.load import load_tower
from anomalyclip.backbones.rotary import form_of
from anomalyclip.backbones.vit import PlainViT
from anomalyclip.backbones.weights import ViTWeights, _config_of, read_any
from anomalyclip.clip.backbone import load_backbone, shared_backbones
from anomalyclip.clip.model import CLIP
from anomalyclip.clip.weights import Weights, read_weights
from anomalyclip.errors import AnomalyCLIPError, AnomalyCLIPNote, NoTextsError
from tests import vit_forms as forms
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """See tests/golden/make_backbones.py."""
    return dict(np.load(GOLDEN / "backbones.npz"))


def read(path: Path) -> ViTWeights:
    weights = read_any(path)
    assert isinstance(weights, ViTWeights)
    return weights


def last_tokens(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """CLS and patches after the final norm."""
    tower = load_tower(path).visual
    with torch.inference_mode():
        positions = tower.positions(*(side // tower.patch_size for side in size))
        tokens = tower.run(tower.embed(forms.formula_pixels(size)), positions=positions, plain=[2])
        return tower.ln_post(tokens.plain[2])[0]


def assert_near(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-5)


# --- timm and the original files ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", forms.SIZES, ids=str)
@pytest.mark.parametrize("form", forms.TIMM)
def test_tokens_equal_timms_at_sizes_other_than_the_weights_own(form, size, published, tmp_path):
    folder = forms.timm_folder(form, tmp_path)
    assert_near(last_tokens(folder, size), published[f"timm {form} {size[0]}x{size[1]}"])


@pytest.mark.parametrize(
    ("width", "heads"), [(384, 6), (1024, 16), (1152, 16), (1280, 16), (1408, 16), (1536, 24)]
)
def test_heads_that_no_configuration_states_are_those_of_timms_models(width, heads):
    shapes = {"conv1.weight": (width, 3, 14, 14), "positional_embedding": (17, width)}
    shapes["transformer.resblocks.0.ln_1.weight"] = (width,)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert _config_of(tensors, Settings("bicubic-antialias", IMAGENET)).vision_heads == heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [0.2, 0, 0.2]}, "expected finite numbers, std above 0"),
        ({"std": [0.2, float("nan"), 0.2]}, "NaN is not a JSON number"),
        ({"std": None}, "config.json lacks std"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_configuration_without_a_usable_mean_and_std_is_refused(change, message, nested, tmp_path):
    folder = forms.timm_folder("plain", tmp_path)
    about = {name: one for name, one in ({"mean": [0.5] * 3} | change).items() if one is not None}
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": about} if nested else about))
    with pytest.raises(AnomalyCLIPError, match=message):
        read(folder)


def test_a_mean_and_std_at_the_top_of_timms_configuration_are_used(tmp_path):
    folder = forms.timm_folder("plain", tmp_path)
    (folder / "config.json").write_text(json.dumps({"mean": [0.1] * 3, "std": [0.2] * 3}))
    config = read(folder).config
    assert (config.mean, config.std) == ((0.1,) * 3, (0.2,) * 3)


def test_an_original_file_gives_the_same_as_timms_at_its_own_size(published, tmp_path):
    path = forms.original_dinov2(tmp_path)
    assert_near(last_tokens(path, (56, 56)), published["timm dinov2 56x56"])


def test_the_original_dinov2_scales_its_positions_by_a_side_that_is_a_tenth_larger(tmp_path):
    config = read(forms.original_dinov2(tmp_path)).config
    assert config.positions == "bicubic-offset"
    tower = load_tower(tmp_path / "dinov2_vits14_pretrain.pth").visual
    table = tower.positional_embedding
    square = table[1:].T.reshape(1, -1, 4, 4)
    factors = (5.1 / 4, 7.1 / 4)  # 5 x 7 patches of a table of 4 x 4
    expected = torch.nn.functional.interpolate(square, scale_factor=factors, mode="bicubic")
    torch.testing.assert_close(tower.positions(5, 7)[1:], expected[0].flatten(1).T)
    plainly = torch.nn.functional.interpolate(square, (5, 7), mode="bicubic")[0].flatten(1).T
    assert (tower.positions(5, 7)[1:] - plainly).abs().max() > 1e-3


def test_with_registers_the_original_is_resized_with_antialiasing_as_timm_does(tmp_path):
    config = read(forms.original_dinov2(tmp_path, registers=True)).config
    assert (config.registers, config.positions, config.class_position) == (3, "bicubic-antialias", True)


def test_a_whole_training_checkpoint_of_dino_is_read_for_its_teacher(tmp_path):
    state = forms.timm_state("plain")
    teacher = {f"module.backbone.{name}": one for name, one in state.items()}
    teacher |= {"module.head.mlp.0.weight": torch.zeros(3, 3)}
    torch.save({"teacher": teacher, "epoch": 100}, tmp_path / "checkpoint.pth")
    config = read(tmp_path / "checkpoint.pth").config
    assert (config.vision_layers, config.positions, config.mean) == (2, "bicubic-offset", IMAGENET_MEAN)


def test_a_classifiers_head_is_left_out(published, tmp_path):
    state = {**forms.timm_state("plain"), "head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}
    torch.save({"model": state}, tmp_path / "deit_small.pth")
    assert_near(last_tokens(tmp_path / "deit_small.pth", (56, 56)), published["timm plain 56x56"])


def test_every_block_of_layer_scale_is_multiplied_in(tmp_path):
    weights = read(forms.timm_folder("dinov2", tmp_path))
    tower, block = PlainViT.frozen(weights.config, weights.state_dict), "transformer.resblocks.1"
    scale, plain = weights.state_dict[f"{block}.ls_2"], weights.state_dict[f"{block}.mlp.c_proj.weight"]
    torch.testing.assert_close(tower.state_dict()[f"{block}.mlp.c_proj.weight"], scale[:, None] * plain)


# --- DINOv3 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", forms.DINOV3_SIZES, ids=str)
@pytest.mark.parametrize("form", forms.DINOV3)
def test_a_dinov3_of_either_form_gives_what_timm_computes(form, size, published, tmp_path):
    """Also at other sizes and proportions; what Meta's file has for the bias of keys is masked."""
    expected = published[f"dinov3 {form} {size[0]}x{size[1]}"]
    assert_near(last_tokens(forms.original_dinov3(form, tmp_path), size), expected)
    assert_near(last_tokens(forms.timm_dinov3(form, tmp_path / "timm"), size), expected)


def test_metas_dinov3_rotates_by_the_periods_of_its_file(tmp_path):
    state = forms.dinov3_state("plain")
    state["rope_embed.periods"] = state["rope_embed.periods"].bfloat16().float()  # as published
    torch.save(state, tmp_path / "dinov3_vits16.pth")
    config = read(tmp_path / "dinov3_vits16.pth").config
    assert config.rotary == tuple(state["rope_embed.periods"].tolist())
    assert config.rotary[1] == pytest.approx(100 ** (1 / 16), rel=0.01)
    assert (config.registers, config.vision_heads, config.eps) == (3, 2, 1e-5)


def test_without_biases_timms_dinov3_has_biases_of_zero(tmp_path):
    folder = forms.timm_dinov3("plain", tmp_path)
    state = {
        name: one for name, one in load_file(folder / "model.safetensors").items() if "_bias" not in name
    }
    save_file(state, folder / "model.safetensors")
    weights = read(folder)
    assert weights.state_dict["transformer.resblocks.0.attn.in_proj_bias"].abs().max() == 0


def test_a_rotation_keeps_lengths_and_angles_between_patches_that_are_equally_far_apart():
    from anomalyclip.backbones.rotary import RotaryViT, rotated

    config = ViTConfig(0, 16, 64, 1, 1, rotary=periods(100.0, 64))
    positions = RotaryViT(config).positions(4, 6)
    assert positions.shape == (25, 64)
    patch = torch.randn(64, generator=torch.Generator().manual_seed(0)).expand(1, 1, 25, 64)
    turned = rotated(patch, positions)[0, 0]
    torch.testing.assert_close(turned[0], patch[0, 0, 0])  # CLS is not rotated
    torch.testing.assert_close(turned.norm(dim=-1), patch[0, 0].norm(dim=-1))
    cosines = turned[1:] @ turned[1:].T
    torch.testing.assert_close(cosines[0, 7], cosines[8, 15])  # a row lower and a column to the right
    assert abs(cosines[0, 7] - cosines[0, 8]) > 0.1


def test_satellite_weights_have_the_normalisation_of_their_images(tmp_path):
    forms.original_dinov3("plain", tmp_path).rename(tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth")
    config = read(tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth").config
    assert config.mean == (0.430, 0.411, 0.296)


@pytest.mark.parametrize(
    "name",
    [
        "downsample_layers.0.0.weight",  # Meta's
        "stages.0.downsample_layers.0.weight",  # transformers'
        "stages.0.blocks.0.conv_dw.weight",  # timm's
    ],
)
def test_a_convnext_of_dinov3_is_refused_by_name(name, tmp_path):
    save_file({name: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(AnomalyCLIPError, match=r"is a ConvNeXt, .*expected a vision transformer \(of DINOv3"):
        read_any(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.mlp.w1.weight": None}, r"has no blocks\.0\.mlp\.w1\.weight; expected all"),
        (
            {"blocks.1.mlp.w2.weight": torch.zeros(2, 128)},
            r"blocks\.1\.mlp\.w2\.weight has the shape \(2, 128\)",
        ),
        ({"blocks.1.attn.qkv.bias": None}, r"has no blocks\.1\.attn\.qkv\.bias"),
        ({"pos_embed": torch.zeros(1, 17, 128)}, r"unexpected tensors: pos_embed"),
        ({"rope_embed.periods": torch.zeros(16)}, r"16 periods; expected 16 positive numbers"),
        ({"rope_embed.periods": torch.ones(15)}, r"15 periods; expected 16 positive numbers"),
        ({"rope_embed.periods": torch.ones(0)}, r"has no tensor pos_embed"),
    ],
)
def test_of_a_dinov3_too_the_tensor_that_is_wrong_is_named(changes, message, tmp_path):
    state = {**forms.dinov3_state("gated"), **changes}
    torch.save({name: one for name, one in state.items() if one is not None}, tmp_path / "dinov3.pth")
    with pytest.raises(AnomalyCLIPError, match=rf"dinov3\.pth: .*{message}"):
        read_any(tmp_path / "dinov3.pth")


def test_timms_dinov3_needs_its_configuration(tmp_path):
    (forms.timm_dinov3("plain", tmp_path) / "config.json").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"timm's DINOv3; expected a config\.json"):
        read_any(tmp_path)


# --- normalisation ------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_the_configuration(tmp_path):
    config = read(forms.timm_folder("plain", tmp_path, mean=[0.5, 0.5, 0.5])).config
    assert config.mean == HALF


def test_without_a_configuration_published_names_say_how_pixels_are_normalised(tmp_path, recwarn):
    for name, mean in (("vit_small_patch16_224.augreg", HALF), ("deit_small", IMAGENET_MEAN)):
        save_file(forms.timm_state("plain"), tmp_path / f"{name}.safetensors")
        assert read(tmp_path / f"{name}.safetensors").config.mean == mean
    assert not recwarn.list
    save_file(forms.timm_state("plain"), tmp_path / "mine.safetensors")
    with pytest.warns(
        AnomalyCLIPNote, match=r"mine\.safetensors: its name .*no config\.json with mean.*ImageNet"
    ):
        assert read(tmp_path / "mine.safetensors").config.mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("kind", "mean", "said"), [("vit", HALF, "deviation 0.5"), ("dinov2", IMAGENET_MEAN, "ImageNet's mean")]
)
def test_a_transformers_folder_without_a_normalisation_has_its_kinds_own(kind, mean, said, tmp_path):
    folder = forms.transformers_folder(kind, tmp_path / "mine")
    missing = r"no preprocessor_config\.json with image_mean and image_std is beside it"
    with pytest.warns(AnomalyCLIPNote, match=f"{missing}: .*{said}") as noted:
        tower = load_tower(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower.fingerprint()  # reads it again, and says nothing
    assert len(noted) == 1
    assert tower.config.mean == mean
    (folder / "preprocessor_config.json").write_text('{"size": 56, "image_mean": null}')
    with pytest.warns(AnomalyCLIPNote, match=missing):
        assert read(folder).config.mean == mean
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.2, 0.2]}'
    )
    assert read(folder).config.mean == (0.1,) * 3
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.1, 0.1]}')
    with pytest.raises(AnomalyCLIPError, match=r"preprocessor_config\.json has no image_std; expected"):
        read(folder)


@pytest.mark.parametrize("name", ["dinov2-vit-base-patch14", "DINOv2-small"])
def test_a_dinov2_is_known_by_its_name_whatever_else_is_in_it(name, tmp_path):
    file = tmp_path / name / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normalisation_by_name(file) == IMAGENET
    assert timm.settings_beside(file, []).dinov2


def test_a_note_about_a_clip_is_said_once(tmp_path):
    open_clip_folder(tmp_path, quick=True, file="mine.pt")
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.warns(AnomalyCLIPNote, match=r"mine\.pt: no open_clip_config\.json") as noted:
        fingerprint = load_backbone(tmp_path / "mine.pt").fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fingerprint()
    assert len(noted) == 1


# --- open_clip ----------------------------------------------------------------------------------------------


def open_clip_folder(
    folder: Path, *, quick: bool, file: str = "open_clip_model.safetensors", **model
) -> Path:
    """Write a file and its configuration as on the hub; as a `.bin` it is the state dict that open_clip pickles."""
    with torch.device("meta"):
        names = CLIP(_clip_config()).state_dict()
    state = {name: forms.formula(name, tuple(one.shape)) for name, one in names.items()}
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    content = {"model_cfg": {**forms.CLIP_CONFIG, **({"quick_gelu": True} if quick else {}), **model}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def _clip_config():
    from anomalyclip.clip.config import CLIPConfig

    return CLIPConfig(32, 56, 14, 64, 2, 1, 64, 2, 1, 16, 100)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "b16.pt"])
def test_image_patches_and_text_equal_open_clips(quick, file, published, tmp_path):
    folder = open_clip_folder(tmp_path, quick=quick, file=file)
    weights = read_weights(folder / file)
    clip, name = CLIP.frozen(weights.config, weights.state_dict), f"open_clip {'quick ' * quick}gelu"
    with torch.inference_mode():
        tokens = clip.visual.run(clip.visual.embed(forms.formula_pixels((56, 56))), plain=[2])
        assert_near(clip.visual.project(tokens.cls)[0], published[f"{name} image"])
        assert_near(clip.visual.ln_post(tokens.plain[2])[0, 1:], published[f"{name} patches"])
        ids = torch.tensor([[98, 3, 14, 15, 92, 99]])
        text = clip.encode_text(clip.token_embedding(ids), torch.tensor([5]))
        assert_near(text[0], published[f"{name} text"])


def test_open_clips_own_normalisation_is_used_and_belongs_to_the_fingerprint(tmp_path):
    from anomalyclip.clip.weights import fingerprint

    folder = open_clip_folder(tmp_path, quick=False)
    before = read_weights(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}  # as of LAION's L/14
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    after = read_weights(folder)
    assert (after.config.mean, after.config.std) == (HALF, HALF)
    assert fingerprint(before.config, before.state_dict) != fingerprint(after.config, after.state_dict)


@pytest.mark.parametrize(
    ("name", "quick", "mean"),
    [
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", True, None),
        ("vit_b_16_plus_240-laion400m_e32-699c4b84.pt", False, None),
        ("b16_400m.pt", True, None),
        ("l14_fullcc2.5b.pt", True, None),
        ("CLIP-ViT-B-16-DataComp.XL-s13B-b90K.bin", False, None),
        ("CLIP-ViT-L-14-laion2B-s32B-b82K.bin", False, HALF),
        ("DFN2B-CLIP-ViT-L-14.bin", True, None),
        ("DFN2B-CLIP-ViT-L-14-39B.bin", False, None),
        ("ViT-B-32.pt", True, None),
    ],
)
def test_without_a_configuration_published_names_say_the_activation(name, quick, mean, tmp_path, recwarn):
    open_clip_folder(tmp_path, quick=quick, file=name)
    (tmp_path / "open_clip_config.json").unlink()
    config = read_weights(tmp_path / name).config
    assert config.quick_gelu is quick
    assert config.mean == (mean or _clip_config().mean)
    assert not recwarn.list


def test_an_unknown_name_without_a_configuration_is_said(tmp_path):
    open_clip_folder(tmp_path, quick=True, file="mine.pt")
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.warns(AnomalyCLIPNote, match=r"mine\.pt: no open_clip_config\.json.*QuickGELU"):
        assert read_weights(tmp_path / "mine.pt").config.quick_gelu


# --- refusals -----------------------------------------------------------------------------------------------


def changed_state(**changes):
    state = {**forms.timm_state("dinov2"), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {name: one for name, one in state.items() if one is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm__bias": None}, r"has no norm\.bias; expected all tensors of the model"),
        ({"blocks__1__ls2__gamma": None}, r"has no blocks\.1\.ls2\.gamma"),
        ({"blocks__1__extra": torch.zeros(2)}, r"unexpected tensors: blocks\.1\.extra"),
        (
            {"blocks__0__mlp__fc1__weight": torch.zeros(2)},
            r"blocks\.0\.mlp\.fc1\.weight has the shape \(2,\)",
        ),
        ({"dist_token": torch.zeros(1, 1, 64)}, r"distilled DeiT.*use the plain one"),
        ({"pos_embed": torch.zeros(1, 19, 64)}, r"pos_embed has 19 rows; expected a square"),
        ({"norm__bias": torch.zeros(5)}, r"norm\.bias has the shape \(5,\); expected \(64,\)"),
        ({"norm__bias": torch.zeros(64, dtype=torch.int64)}, r"is torch\.int64; expected floating-point"),
    ],
)
def test_the_tensor_that_is_wrong_is_named(changes, message, tmp_path):
    torch.save(changed_state(**changes), tmp_path / "dinov2.pth")
    with pytest.raises(AnomalyCLIPError, match=rf"dinov2\.pth: .*{message}"):
        read_any(tmp_path / "dinov2.pth")


@pytest.mark.parametrize(
    ("kind", "prefix", "missing", "said"),
    [
        ("vit", "vit.", "encoder.layer.1.attention.attention.key.weight", None),
        ("vit", "", "encoder.layer.0.layernorm_before.bias", None),
        ("vit", "", "encoder.layer.1.output.dense.weight", None),
        ("dinov2", "", "encoder.layer.1.norm2.bias", None),
        ("dinov2", "", "encoder.layer.0.layer_scale2.lambda1", None),
        ("dinov2", "dinov2.", "embeddings.position_embeddings", "has no tensor dinov2.embeddings"),
        ("dinov2", "", "layernorm.weight", None),
    ],
)
def test_a_missing_tensor_of_transformers_is_named_as_it_is_there(kind, prefix, missing, said, tmp_path):
    folder = forms.transformers_folder(kind, tmp_path / "dino")
    state = {prefix + name: one for name, one in forms.transformers_state(kind).items() if name != missing}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(AnomalyCLIPError, match=re.escape(said or f"has no {prefix}{missing}; expected all")):
        read(folder)


def test_projections_that_do_not_belong_together_are_named(tmp_path):
    folder, name = (
        forms.transformers_folder("dinov2", tmp_path / "dino"),
        "encoder.layer.0.attention.attention.",
    )
    state = forms.transformers_state("dinov2") | {f"{name}key.bias": torch.zeros(3)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        AnomalyCLIPError, match=rf"has no {name}query\.bias or {name}key\.bias or .* right shape"
    ):
        read(folder)


def test_a_part_of_a_gated_mlp_is_named_as_it_is_in_the_file():
    names = ["blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"]
    called = timm.called_in(names)
    assert called("transformer.resblocks.1.mlp.c_gate.weight") == "blocks.1.mlp.w12.weight"
    assert called("transformer.resblocks.1.mlp.c_fc.weight") == "blocks.1.mlp.w12.weight"
    assert called("transformer.resblocks.1.mlp.c_proj.bias") == "blocks.1.mlp.w3.bias"
    assert timm.called_in(["blocks.0.mlp.fc2.bias"])("ln_post.bias") == "norm.bias"


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path):
    forms.timm_folder("plain", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("[3, 56, 56]", "[3, 224, 224]"))
    with pytest.raises(AnomalyCLIPError, match="says image_size = 224, its tensors say 56"):
        read_any(tmp_path)
    open_clip_folder(tmp_path, quick=True, embed_dim=512)
    with pytest.raises(AnomalyCLIPError, match="says embed_dim = 512, its tensors say 32"):
        read_any(tmp_path / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"}, r"architecture 'resnet50', which is no vision transformer"),
        ({"architecture": "vit_large_patch14_dinov2"}, "vision_width = 1024, its tensors say 64"),
        ({"architecture": "vit_tiny_patch16_224"}, "patch_size = 16, its tensors say 14"),
        ({"num_features": 384}, "vision_width = 384, its tensors say 64"),
        ({"model_args": {"depth": 12}}, "vision_layers = 12, its tensors say 2"),
    ],
)
def test_an_architecture_of_timm_that_contradicts_the_tensors_is_refused(changes, message, tmp_path):
    config = forms.timm_folder("plain", tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(AnomalyCLIPError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch14_reg4_dinov2", (384, 12)),
        ("deit3_large_patch16_224", (1024, 24)),
        ("eva_large_patch14_196", (1024, 24)),
        ("vit_base_patch16_plus_240", None),  # 896 wide
        ("vit_small_patch16_36x1_224", None),  # 36 deep
        ("vit_medium_patch16_gap_240", None),
    ],
)
def test_names_of_timms_architectures_say_width_and_depth_where_they_are_plain(name, size):
    stated = timm.stated_by({"architecture": name})
    assert (None if not stated else (stated["vision_width"], stated["vision_layers"])) == size


def test_arguments_in_timms_configuration_come_before_the_name(tmp_path):
    config = forms.timm_folder("plain", tmp_path) / "config.json"
    own = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"embed_dim": 64, "depth": 2, "patch_size": 14},
    }
    own["model_args"]["num_heads"] = 2
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    assert read(tmp_path).config.vision_heads == 2


EXPECTED = r"expected the weights of DINOv3, DINOv2, DINO or a plain vision transformer .*, or of a CLIP"
NO_BACKBONES = {
    "empty.pth": Path.touch,
    "photo.jpg": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 no weights"),
    "list.pth": lambda path: torch.save([1], path),
    "folder": None,
}


def test_a_file_that_is_no_backbone_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        AnomalyCLIPError, match=r"other\.safetensors: has no tensor visual\.conv1\.weight; " + EXPECTED
    ):
        load_tower(tmp_path / "other.safetensors")
    for name, write in NO_BACKBONES.items():
        (tmp_path / name).mkdir() if write is None else write(tmp_path / name)
        with pytest.raises(AnomalyCLIPError, match=f"{name}: .*; {EXPECTED}"):
            load_tower(tmp_path / name)


@pytest.mark.parametrize("name", ["logit_bias", "vision_model.head.probe", "visual.trunk.attn_pool.q.weight"])
def test_a_siglip_is_refused_by_name(name, tmp_path):
    save_file({name: torch.zeros(1)}, tmp_path / "siglip.safetensors")
    with pytest.raises(AnomalyCLIPError, match=r"is a SigLIP, which is not supported.*docs/models\.md"):
        read_any(tmp_path / "siglip.safetensors")


def test_where_texts_are_needed_a_vision_only_file_is_refused(tmp_path):
    with pytest.raises(NoTextsError, match=r"model\.safetensors: a vision-only backbone, .*anomalydino"):
        read_weights(forms.timm_folder("dinov2", tmp_path))


def test_a_transformers_model_of_another_kind_is_refused(tmp_path):
    save_file(
        {"beit.embeddings.patch_embeddings.projection.weight": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text('{"model_type": "beit"}')
    with pytest.raises(AnomalyCLIPError, match=r"model_type 'beit'; expected one of dinov2, .*vit"):
        read_any(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"no config\.json in the same folder"):
        read_any(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"cls_token": re.compile("x")}, tmp_path / "dinov2_vits14_pretrain.pth")
    with pytest.raises(
        AnomalyCLIPError, match=r"dinov2_vits14_pretrain\.pth: .*not loaded because they can run"
    ):
        read_any(tmp_path / "dinov2_vits14_pretrain.pth")


def test_a_clip_is_read_as_one(tmp_path):
    weights = read_any(open_clip_folder(tmp_path, quick=True))
    assert isinstance(weights, Weights)
    assert load_tower(tmp_path).config.embed_dim == 32


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(56, 14, 64, 2, 1, registers=2, class_position=False),
        ViTConfig(0, 14, 64, 2, 1, registers=2, gated=96, rotary=periods(100.0, 64)),
    ],
)
def test_shapes_are_those_of_the_model(config):
    state = form_of(config)(config).state_dict()
    assert {name: tuple(one.shape) for name, one in state.items()} == tensor_shapes(config)


# --- shared ---------------------------------------------------------------------------------------------------


def test_a_vision_only_backbone_is_shared_and_has_no_texts_all_the_same(tmp_path):
    path = forms.original_dinov2(tmp_path)
    with shared_backbones():
        assert load_tower(path).visual is load_tower(path).visual
        with pytest.raises(NoTextsError):
            load_backbone(path)
    assert load_tower(path).visual is not load_tower(path).visual
