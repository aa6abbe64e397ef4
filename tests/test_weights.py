"""Every published form of CLIP weights gives the same tensors, or a message that helps."""

import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalyclip.clip.backbone import load_clip
from anomalyclip.clip.weights import Weights, fingerprint, read_weights, save_weights
from anomalyclip.errors import AnomalyCLIPError
from tests import clip_forms as forms
from tests.clip_forms import CONFIG

State = dict[str, Tensor]
Write = Callable[[State, Path], Path]


@pytest.fixture
def state() -> State:
    return forms.tiny()


def assert_equal(weights: Weights, state: State) -> None:
    assert weights.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        assert weights.state_dict[name].dtype == tensor.dtype
        assert torch.equal(weights.state_dict[name], tensor), name


@pytest.mark.parametrize(
    "write",
    [
        forms.archive,
        forms.state_dict,
        forms.old_state_dict,
        forms.training_checkpoint,
        forms.open_clip_file,
        forms.open_clip_folder,
        forms.transformers_folder,
        forms.sharded_transformers_folder,
        forms.transformers_bin_folder,
        forms.own_file,
        forms.own_folder,
    ],
)
def test_every_form_gives_the_same_tensors_and_architecture(
    write: Write, state: State, tmp_path: Path
) -> None:
    path = write(state, tmp_path)

    weights = read_weights(path)

    assert weights.config == CONFIG
    assert weights.source == path
    assert_equal(weights, state)
    assert fingerprint(weights.config, weights.state_dict) == fingerprint(CONFIG, state)


# --- no code of a file is run -------------------------------------------------------------------------------


class Trap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        raise RuntimeError("the code of the archive ran")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_an_archive_is_read_without_running_its_code(tmp_path: Path) -> None:
    path = tmp_path / "trap.pt"
    torch.jit.save(torch.jit.script(Trap()), path)

    with pytest.raises(torch.jit.Error, match="the code of the archive ran"):
        torch.jit.load(path)
    with pytest.raises(AnomalyCLIPError, match=r"trap\.pt: ") as refused:
        read_weights(path)
    assert "the code of the archive ran" not in str(refused.value)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "ran")
    torch.save({"state_dict": bomb}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(bomb, protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(
            AnomalyCLIPError, match=rf"{name}: .*other than tensors.*torch\.save\(model\.state"
        ):
            read_weights(tmp_path / name)
    assert not bomb.path.exists()


def test_an_archive_whose_pickle_calls_anything_is_refused(state: State, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "ran")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps(bomb, protocol=2))
        archive.writestr("bomb/constants.pkl", b"")
    with pytest.raises(AnomalyCLIPError, match=r"bomb\.pt: .* refers to .*eval"):
        read_weights(tmp_path / "bomb.pt")
    assert not bomb.path.exists()


# --- what tensors do not show -------------------------------------------------------------------------------


def test_open_clip_models_have_gelu_unless_their_configuration_says_quick(
    state: State, tmp_path: Path
) -> None:
    folder = forms.open_clip_folder(state, tmp_path, quick_gelu=False)
    assert not read_weights(folder).config.quick_gelu
    assert not read_weights(folder / "open_clip_model.safetensors").config.quick_gelu
    assert read_weights(
        forms.open_clip_file(state, tmp_path)
    ).config.quick_gelu  # no configuration: as OpenAI


def test_the_activation_of_a_transformers_model_is_in_its_config(state: State, tmp_path: Path) -> None:
    folder = forms.transformers_folder(state, tmp_path)
    forms.transformers_config(folder, "gelu")
    assert not read_weights(folder).config.quick_gelu
    forms.transformers_config(folder, "relu")
    with pytest.raises(AnomalyCLIPError, match=r"model\.safetensors: .*relu.*quick_gelu or gelu"):
        read_weights(folder)


def test_transformers_weights_without_their_config_are_refused(state: State, tmp_path: Path) -> None:
    (forms.transformers_folder(state, tmp_path) / "config.json").unlink()
    with pytest.raises(AnomalyCLIPError, match=r"no config\.json in the same folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["own.safetensors", "own"])
def test_our_own_form_keeps_heads_of_any_width_and_the_activation(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, vision_width=96, vision_heads=3, text_heads=2, quick_gelu=False)
    path = save_weights(Weights(config, forms.tiny(config), tmp_path), tmp_path / name)
    assert read_weights(path).config == config


def test_heads_of_another_width_need_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(AnomalyCLIPError, match=r"vision width 96 is not a multiple of 64"):
        read_weights(forms.state_dict(forms.tiny(replace(CONFIG, vision_width=96)), tmp_path))


def test_a_configuration_that_contradicts_the_tensors_is_refused(state: State, tmp_path: Path) -> None:
    config = forms.own_folder(state, tmp_path) / "config.json"
    for text, message in (
        (config.read_text().replace('"image_size": 28', '"image_size": 224'), "image_size = 224, .* say 28"),
        (
            config.read_text().replace('"vision_heads": 2', '"vision_heads": 3'),
            "not divisible by the 3 heads",
        ),
        ('{"embed_dim": 32}', r"config\.json is invalid"),
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json is not a JSON object"),
    ):
        config.write_text(text)
        with pytest.raises(AnomalyCLIPError, match=message):
            read_weights(config.parent)


# --- refusals -----------------------------------------------------------------------------------------------

BIAS = "visual.transformer.resblocks.1.mlp.c_fc.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BIAS: None}, rf"state\.pt: has no {BIAS}; expected"),
        ({BIAS: torch.zeros(7)}, rf"{BIAS} has the shape \(7,\); expected \(512,\)"),
        ({BIAS: torch.zeros(512, dtype=torch.int64)}, rf"{BIAS} is torch\.int64; expected floating-point"),
        (
            {"visual.transformer.resblocks.1.ls_1.gamma": torch.zeros(1)},
            r"unexpected tensors: .*ls_1\.gamma",
        ),
        ({"visual.positional_embedding": torch.zeros(7, 128)}, r"7 rows; expected a square number"),
        ({"visual.conv1.weight": torch.zeros(3)}, r"visual\.conv1\.weight has 1 dimensions; expected 4"),
        ({"text_projection": None}, r"has no tensor text_projection"),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, r"ResNet image encoder; expected a vision trans"),
    ],
)
def test_the_tensor_that_is_wrong_is_named(
    change: dict[str, Tensor | None], message: str, state: State, tmp_path: Path
) -> None:
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    with pytest.raises(AnomalyCLIPError, match=message):
        read_weights(forms.state_dict(changed, tmp_path))


@pytest.mark.parametrize(
    "missing",
    [
        "vision_model.encoder.layers.1.mlp.fc2.bias",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.pre_layrnorm.bias",
        "text_model.encoder.layers.0.self_attn.v_proj.weight",
        "text_model.final_layer_norm.weight",
        "text_projection.weight",
    ],
)
def test_a_missing_tensor_of_transformers_is_named_as_it_is_there(
    missing: str, state: State, tmp_path: Path
) -> None:
    tensors = forms.in_transformers_names(state)
    del tensors[missing]
    save_file(tensors, forms.transformers_config(tmp_path) / "model.safetensors")
    with pytest.raises(AnomalyCLIPError, match=rf"has no (tensor )?{missing};"):
        read_weights(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize(
    "write", [forms.archive, forms.state_dict, forms.old_state_dict, forms.open_clip_file, forms.own_file]
)
def test_a_file_that_was_cut_short_is_named(write: Write, share: float, state: State, tmp_path: Path) -> None:
    path = write(state, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AnomalyCLIPError, match=rf"{path.name}: (is|cannot be read)"):
        read_weights(path)


def test_an_archive_with_a_flipped_bit_is_refused(state: State, tmp_path: Path) -> None:
    path = forms.archive(state, tmp_path)
    content = bytearray(path.read_bytes())
    content[content.find(state["token_embedding.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(AnomalyCLIPError, match=r"ViT\.pt: is a damaged .* archive"):
        read_weights(path)


def test_other_files_and_folders_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 not weights")
    (tmp_path / "empty.pt").touch()
    torch.save([1, 2], tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    for name in ("photo.jpg", "empty.pt", "list.pt", "other.zip"):
        with pytest.raises(AnomalyCLIPError, match=rf"{name}: .*expected the weights of a CLIP"):
            read_weights(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(AnomalyCLIPError, match=r"folder: the folder has no open_clip_model\.safetensors"):
        read_weights(tmp_path / "folder")


def test_a_shard_that_is_not_there_is_named(state: State, tmp_path: Path) -> None:
    forms.sharded_transformers_folder(state, tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        AnomalyCLIPError,
        match=r"refers to model-00002-of-00002\.safetensors, which is not in the same folder",
    ):
        read_weights(tmp_path)


# --- writing and identity -----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a process has mapped")
def test_weights_in_float32_are_used_where_the_file_is_mapped_so_that_processes_share_them(
    state: State, tmp_path: Path
) -> None:
    path = forms.own_file({name: tensor.float() for name, tensor in state.items()}, tmp_path)
    weights = list(load_clip(path).parameters())
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    places = [range(int(start, 16), int(end, 16)) for start, end in mapped]

    assert len(weights) > 50
    assert all(any(weight.data_ptr() in place for place in places) for weight in weights)


def test_saving_over_the_file_that_is_mapped_keeps_both_whole(state: State, tmp_path: Path) -> None:
    path = forms.own_file(state, tmp_path)
    first = read_weights(path)
    changed = {name: tensor + 1 for name, tensor in first.state_dict.items()}

    save_weights(Weights(CONFIG, changed, path), path)

    assert_equal(first, state)
    assert_equal(read_weights(path), changed)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_named(state: State, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnomalyCLIPError, match=r"file/w\.safetensors: cannot be written"):
        save_weights(Weights(CONFIG, state, tmp_path), tmp_path / "file" / "w.safetensors")


def test_the_fingerprint_changes_with_any_value_and_setting_and_not_with_the_files_type(state: State) -> None:
    base = fingerprint(CONFIG, state)
    for name in state:  # every tensor counts, not one that stands for all
        changed = state | {name: state[name] * 1.05 + 0.01}
        assert fingerprint(CONFIG, changed) != base, name
    assert fingerprint(replace(CONFIG, quick_gelu=False), state) != base
    assert fingerprint(CONFIG, {name: tensor.float() for name, tensor in state.items()}) == base
    assert fingerprint(CONFIG, dict(reversed(state.items()))) == base


def test_heads_that_are_no_number_and_an_archive_whose_names_are_no_text_are_named(tmp_path: Path) -> None:
    folder = forms.transformers_folder(forms.tiny(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = "2"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        AnomalyCLIPError, match=r"model\.safetensors: its configuration says '2' vision heads"
    ):
        read_weights(folder)
    file = forms.state_dict(forms.tiny(), tmp_path)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # of the directory; its name follows 46 bytes later
    content[entry + 9] |= 0x08  # is UTF-8, it says
    content[entry + 46 : entry + 48] = b"\xe9("
    file.write_bytes(content)
    with pytest.raises(AnomalyCLIPError, match=r"state\.pt: is a damaged zip archive"):
        read_weights(file)
