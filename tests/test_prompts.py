"""The prompts: text features as published, both checkpoint formats, errors that name the file."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalyclip import DetectorSpec
from anomalyclip.backbones.table import ASSETS
from anomalyclip.benchmark import ARCHITECTURES
from anomalyclip.clip.backbone import load_backbone
from anomalyclip.clip.model import CLIP
from anomalyclip.detector import Detector
from anomalyclip.engines.export import export
from anomalyclip.engines.exported import ExportedScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.prompts import PromptLearner, Prompts, load_prompts, load_prompts_for
from anomalyclip.texts import Phrases
from tests.conftest import torch_scorer

IDS = torch.tensor(
    [[49406, *[343] * 12, 14115, 269, 49407, 0], [49406, *[343] * 12, 13568, 14115, 269, 49407]]
)


def published(prompts: Prompts, **changes: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint as the published training writes it, built by hand."""
    ids = torch.zeros(2, 77, dtype=torch.int32)
    ids[:, : prompts.token_ids.shape[1]] = prompts.token_ids[:, :77]
    state = {
        "ctx_pos": prompts.normal[None, None],
        "ctx_neg": prompts.abnormal[None, None],
        "token_prefix_pos": torch.randn(1, 1, 1, prompts.width),
        "token_suffix_pos": torch.randn(1, 1, 64, prompts.width),
        "tokenized_prompts_pos": ids[None, None, 0],
        "tokenized_prompts_neg": ids[None, None, 1],
    }
    for i, tokens in enumerate(prompts.deep_tokens):
        state[f"compound_prompts_text.{i}"] = tokens
        state[f"compound_prompt_projections.{i}.weight"] = torch.randn(896, prompts.width)
    return {"prompt_learner": state | changes}


def test_text_features_equal_the_published_ones(golden, tiny_clip):
    features = golden.prompts.text_features(tiny_clip)
    np.testing.assert_allclose(features.detach().numpy(), golden.arrays["text_features"], atol=1e-5)


def test_the_published_form_is_read_whatever_unused_tensors_it_holds(paper_case, tiny_clip, tmp_path):
    torch.save(published(paper_case.prompts), tmp_path / "epoch_15.pth")
    prompts = load_prompts(tmp_path / "epoch_15.pth")
    assert (prompts.length, len(prompts.deep_tokens), len(prompts.deep_tokens[0])) == (12, 8, 4)
    features = prompts.text_features(tiny_clip).detach().numpy()
    np.testing.assert_allclose(features, paper_case.arrays["text_features"], atol=1e-5)


def test_the_written_published_form_has_the_published_keys_shapes_and_dtypes(paper_case, tiny_clip, tmp_path):
    paper_case.prompts.save_published(tmp_path / "prompts.pth", tiny_clip)
    state = torch.load(tmp_path / "prompts.pth", weights_only=True)["prompt_learner"]
    expected = {
        "ctx_pos": (1, 1, 12, 64),
        "ctx_neg": (1, 1, 12, 64),
        "token_prefix_pos": (1, 1, 1, 64),
        "token_prefix_neg": (1, 1, 1, 64),
        "token_suffix_pos": (1, 1, 64, 64),
        "token_suffix_neg": (1, 1, 64, 64),
        "tokenized_prompts_pos": (1, 1, 77),
        "tokenized_prompts_neg": (1, 1, 77),
    }
    for i in range(8):
        expected[f"compound_prompts_text.{i}"] = (4, 64)
        expected[f"compound_prompt_projections.{i}.weight"] = (896, 64)
        expected[f"compound_prompt_projections.{i}.bias"] = (896,)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    integers = {name for name, tensor in state.items() if tensor.dtype == torch.int32}
    assert integers == {"tokenized_prompts_pos", "tokenized_prompts_neg"}
    assert all(tensor.dtype == torch.float32 for name, tensor in state.items() if name not in integers)
    end = state["tokenized_prompts_neg"].flatten().argmax()
    assert end == 16
    after_context = tiny_clip.token_embedding(torch.tensor([13568, 14115]))
    assert torch.equal(state["token_suffix_neg"][0, 0, :2], after_context)


def test_both_forms_give_back_the_same_prompts(paper_case, tiny_clip, tmp_path):
    prompts = Prompts(**{**vars(paper_case.prompts), "info": {"trained_on": "visa"}})
    prompts.save(tmp_path / "prompts.safetensors")
    prompts.save_published(tmp_path / "prompts.pth", tiny_clip)
    for name in ("prompts.safetensors", "prompts.pth"):
        again = load_prompts(tmp_path / name)
        assert torch.equal(again.normal, prompts.normal)
        assert torch.equal(again.abnormal, prompts.abnormal)
        assert torch.equal(again.token_ids, prompts.token_ids)
        assert all(map(torch.equal, again.deep_tokens, prompts.deep_tokens))
    assert load_prompts(tmp_path / "prompts.safetensors").info == {"trained_on": "visa"}


def test_cutting_the_text_does_not_change_its_features(paper_case, tiny_clip):
    ids = paper_case.prompts.token_ids
    assert ids.shape == (2, 77)
    cut = Prompts(**{**vars(paper_case.prompts), "token_ids": ids[:, :17]})
    assert torch.equal(cut.text_features(tiny_clip), paper_case.prompts.text_features(tiny_clip))


def test_initial_prompts_are_drawn_from_a_normal_distribution_of_deviation_two_hundredths():
    prompts = Prompts.initial(IDS, width=768, generator=torch.Generator().manual_seed(1))
    numbers = torch.cat([t.flatten() for t in (prompts.normal, prompts.abnormal, *prompts.deep_tokens)])
    assert len(numbers) == 43008  # what is learned in all, as the paper has it
    assert numbers.std() == pytest.approx(0.02, rel=0.02)
    again = Prompts.initial(IDS, width=768, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.abnormal, prompts.abnormal)


def test_plain_words_need_nothing_learned(tiny_clip):
    ids = torch.tensor([[49406, 14115, 269, 49407, 0], [49406, 13568, 14115, 269, 49407]])
    prompts = Phrases(ids[:1], ids[1:])
    embeddings = tiny_clip.token_embedding(ids)
    expected = torch.nn.functional.normalize(tiny_clip.encode_text(embeddings, torch.tensor([3, 4])), dim=-1)
    torch.testing.assert_close(prompts.text_features(tiny_clip), expected)


def test_every_learned_number_gets_a_gradient(paper_case, tiny_clip):
    learner = PromptLearner(paper_case.prompts)
    learner(tiny_clip)[1].sum().backward()
    assert len(list(learner.parameters())) == 10
    assert all(p.grad is not None for p in learner.parameters())
    assert learner.abnormal.grad.abs().sum() > 0
    torch.testing.assert_close(learner.value().abnormal, paper_case.prompts.abnormal)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither prompts as safetensors nor a published .pth"),
        (b"PK\x03\x04 torn", "not a readable checkpoint of tensors"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "not prompts: its header says format None"),
    ],
)
def test_a_file_that_is_no_prompts_is_refused_by_name(content, says, tmp_path):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(AnomalyCLIPError, match=says) as caught:
        load_prompts(path)
    assert "bad.pth" in str(caught.value)


def test_a_missing_file_is_said_to_be_missing():
    with pytest.raises(AnomalyCLIPError, match="nowhere.pth: no such prompts file"):
        load_prompts(Path("nowhere.pth"))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / "model.pth")
    with pytest.raises(AnomalyCLIPError, match="not a prompts checkpoint"):
        load_prompts(tmp_path / "model.pth")


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path):
    torch.save({"prompt_learner": Path}, tmp_path / "evil.pth")
    with pytest.raises(AnomalyCLIPError, match="not a readable checkpoint of tensors"):
        load_prompts(tmp_path / "evil.pth")


def test_tensors_that_do_not_fit_together_are_refused(paper_case, tmp_path):
    torch.save(published(paper_case.prompts, ctx_neg=torch.zeros(1, 1, 10, 64)), tmp_path / "odd.pth")
    with pytest.raises(AnomalyCLIPError, match="odd.pth: the prompts' tensors do not match"):
        load_prompts(tmp_path / "odd.pth")


def test_prompts_of_another_backbone_are_refused_with_both_widths(tiny_clip):
    prompts = Prompts.initial(IDS, width=768)
    with pytest.raises(AnomalyCLIPError, match="text width 768.*the backbone has text width 64"):
        prompts.text_features(tiny_clip)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ctx_pos": torch.zeros(64)}, "not lists of vectors"),
        ({"compound_prompts_text.9": torch.zeros(4, 64)}, "compound_prompts_text.8 missing"),
        ({"compound_prompts_text.0": torch.zeros(40, 64)}, "tensors do not match"),
        ({"ctx_neg": torch.full((1, 1, 12, 64), torch.nan)}, "contain NaN or infinite values"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(changes, says, paper_case, tmp_path):
    torch.save(published(paper_case.prompts, **changes), tmp_path / "damaged.pth")
    with pytest.raises(AnomalyCLIPError, match=f"damaged.pth: .*{says}"):
        load_prompts(tmp_path / "damaged.pth")


def test_a_backbone_of_the_papers_shape_gets_the_published_prompts(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALYCLIP_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.device("meta"):
        clip = CLIP(ARCHITECTURES["ViT-L-14-336"])
        other = CLIP(ARCHITECTURES["ViT-B-32"])
    with pytest.raises(AnomalyCLIPError, match="prompts 'mvtec' could not be downloaded"):
        load_prompts_for(clip, tmp_path)
    with pytest.raises(AnomalyCLIPError, match="there are no prompts for the backbone"):
        load_prompts_for(other, tmp_path)


def test_published_prompts_say_what_they_were_trained_on_and_an_export_keeps_it(
    paper_case, tiny_clip, monkeypatch, tmp_path
):
    """The checkpoints themselves do not say it: here they are the golden ones in the place of a download."""
    paper_case.prompts.save_published(tmp_path / "epoch_15.pth", tiny_clip)
    monkeypatch.setattr("anomalyclip.prompts.resolve_prompts", lambda *_, **__: tmp_path / "epoch_15.pth")
    monkeypatch.setattr("anomalyclip.prompts._is_vit_l_14_336", lambda clip: True)
    assert load_prompts_for(tiny_clip, tmp_path, "visa").info == {"name": "visa", "trained_on": "visa"}
    learned = load_prompts_for(tiny_clip, tmp_path)
    assert learned.info == {"name": "mvtec", "trained_on": "mvtec"}
    report = export(Detector(torch_scorer(tiny_clip, learned, image_size=56)), tmp_path / "m.onnx")
    described = ExportedScorer(report.files[0]).describe()
    assert (described.facts["trained_on"], described.facts["prompts"]) == ("mvtec", "mvtec")
    assert described.training["trained_on"] == "mvtec"


def test_prompts_that_were_learned_on_other_weights_are_refused_where_they_say_so(tmp_path):
    learned, weights = (
        load_prompts(ASSETS / "micro" / "prompts.safetensors"),
        load_backbone("micro").fingerprint(),
    )
    for name, fingerprint in (("same", weights), ("other", "ab" * 32)):
        info = {**learned.info, "backbone_fingerprint": fingerprint}
        replace(learned, info=info).save(tmp_path / f"{name}.safetensors")
    DetectorSpec("micro", prompts=str(tmp_path / "same.safetensors")).load()
    with pytest.raises(
        AnomalyCLIPError, match=r"other\.safetensors: was trained on other weights \(SHA-256 abababab"
    ):
        DetectorSpec("micro", prompts=str(tmp_path / "other.safetensors")).load()
    folder = shutil.copytree(ASSETS / "micro", tmp_path / "mine")
    shutil.copy(tmp_path / "other.safetensors", folder / "prompts.safetensors")
    with pytest.raises(AnomalyCLIPError, match=r"mine.prompts\.safetensors: was trained on other weights"):
        DetectorSpec(str(folder)).load()
