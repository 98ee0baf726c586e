"""The model card says what PEFT's own card cannot, and never loses what its author wrote."""

import json
import warnings
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

import samparser
from samparser.methods import build, save_trained
from samparser.methods.card import BEGIN, END, CardInfo, add_scores, model_card, read_info, write_card
from samparser.tuner import expansion_terms

from .conftest import train_a_little

INFO = CardInfo(
    base_model="facebook/sam-vit-base",
    base_class="SamModel",
    base_library="transformers.models.sam.modeling_sam",
    target_modules=["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"],
    trained={"coefficients": 512, "mask_decoder": 4058340},
    adapter_bytes=16_235_000,
)


@pytest.fixture
def adapter(tmp_path):
    """A saved adapter's folder as PEFT leaves it, but for its README.md."""
    prefix = "base_model.model"
    tensors = {
        f"{prefix}.vision_encoder.neck.conv1.svd_coefficient_p": torch.ones(256),
        f"{prefix}.vision_encoder.neck.conv1.svd_coefficient_p0": torch.ones(256),
        f"{prefix}.vision_encoder.neck.conv2.svd_coefficient_p": torch.ones(256),
        f"{prefix}.vision_encoder.neck.conv2.svd_coefficient_u": torch.ones(256, 256),
        f"{prefix}.mask_decoder.upscale.weight": torch.ones(3, 5),
        f"{prefix}.vision_encoder.neck.conv1.base_layer.bias": torch.ones(7),
    }
    config = {
        "base_model_name_or_path": "facebook/sam-vit-base",
        "auto_mapping": {"base_model_class": "SamModel", "parent_library": "transformers.models.sam.modeling_sam"},
        "target_modules": ["vision_encoder.neck.conv2", "vision_encoder.neck.conv1"],
        "modules_to_save": ["mask_decoder"],
        "trainable": "coefficients",
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def pefts_card(tmp_path):
    """The card as PEFT 0.21 makes it from huggingface_hub's template."""
    card = ModelCard.from_template(ModelCardData())
    card.data["library_name"] = "peft"
    card.data["tags"] = ["base_model:adapter:facebook/sam-vit-base", "transformers"]
    card.text += "\n### Framework versions\n\n- PEFT 0.21.2"
    card.save(tmp_path / "README.md")
    return str(card)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 50_000, "is not JSON that can be read: it is nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', r"is not JSON that can be read: Exceeds the limit \(4300 digits\)"),
        ("[1]", r"holds \[1\], which is no configuration"),
        ('{"target_modules": 1e999}', r"holds \{'target_modules': inf\}, which is no configuration"),
        ('{"auto_mapping": "x"}', r"holds \{'auto_mapping': 'x'\}, which is no configuration"),
    ],
    ids=["deep", "long", "list", "infinite", "text"],
)
def test_a_configuration_that_cannot_be_read_is_named(adapter, text, reason):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"adapter_config\.json {reason}"):
        read_info(adapter)


def test_the_folder_tells_everything(adapter):
    info = read_info(adapter)
    assert info.trained == {"coefficients": 512, "mask_decoder": 15, "other parameters": 7}
    assert next(iter(info.trained)) == "coefficients"
    assert info.target_modules == ["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"]
    assert (info.base_model, info.base_class) == ("facebook/sam-vit-base", "SamModel")
    assert info.adapter_bytes == (adapter / "adapter_model.safetensors").stat().st_size


def test_saved_bases_count_as_trained_only_where_they_are(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"trainable": "both"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert read_info(adapter).trained["bases"] == 256 * 256


@pytest.mark.parametrize(
    ("kind", "method", "options", "trained", "said"),
    [
        ("pairs", "expansion", {"rank": 5}, {"terms": 10}, "and the numbers `c` of terms `c u_i v_j`, pairs"),
        (
            "gradient",
            "expansion",
            {"kind": "gradient", "rank": 2},
            {"terms": 4},
            "`c a b` along directions of the grad",
        ),
        (
            "random",
            "samparser-coefficients",
            {"expansion": "random", "expansion_rank": 2},
            {"coefficients": 56, "terms": 4},
            "and the coefficients `p` and the numbers `c` of terms `c a b` along random directions",
        ),
    ],
    ids=["pairs", "gradient", "both"],
)
def test_the_card_of_an_expansion_counts_what_trained_and_says_what_it_saw(
    tmp_path, tiny_sam, tiny_inputs, kind, method, options, trained, said
):
    model = build(method, tiny_sam, **options)
    train_a_little(model, tiny_inputs)
    save_trained(model, tmp_path)
    info = read_info(tmp_path)
    assert info.trained == trained
    assert info.expansion == kind
    assert info.shares == {name: terms.share["all"] for name, terms in expansion_terms(model).items()}
    text = (tmp_path / "README.md").read_text()
    assert said in text
    assert f"- Trained parameters: {sum(trained.values())}" in text
    assert f"saw before training: {100 * info.shares['vision_encoder.neck.conv1']:.1f} % in `vision_enc" in text


@pytest.mark.parametrize("record", [3, {"a": 3}, {"a": {"share": 3}}, {"a": {"share": {"all": "x"}}}], ids=str)
def test_a_record_of_shares_that_is_none_is_left_out(adapter, record):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"expansion_record": record}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert read_info(adapter).shares == {}
    assert "saw before training" not in write_card(adapter).read_text()


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused(adapter, missing):
    (adapter / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {missing}"):
        write_card(adapter)
    assert not (adapter / "README.md").exists()


def test_a_new_card_has_metadata_numbers_snippet_and_versions(adapter):
    card = ModelCard.load(write_card(adapter))
    assert card.data.to_dict() == {
        "base_model": "facebook/sam-vit-base",
        "library_name": "peft",
        "tags": ["samparser", "svd-coefficients"],
    }
    for part in (
        "# SVD coefficients for facebook/sam-vit-base",
        "Trained parameters: 534 (512 coefficients, 15 in mask_decoder, 7 other parameters)",
        "`vision_encoder.neck.conv1`, `vision_encoder.neck.conv2`",
        "pip install samparser",
        f"- samparser {samparser.__version__}",
        f"- torch {version('torch')}",
        "## Data, scores and limits",
    ):
        assert part in card.text


def test_the_licence_is_left_to_fill_in_and_kept_once_it_is(adapter):
    path = write_card(adapter)
    assert "\n# license: fill in" in path.read_text()
    path.write_text(path.read_text().replace("# license: fill in", "license: apache-2.0 #"))
    assert ModelCard.load(write_card(adapter)).data["license"] == "apache-2.0"
    assert "fill in" not in path.read_text().split("---")[1]


def test_the_snippet_runs_up_to_the_download(adapter, monkeypatch):
    text = write_card(adapter).read_text()
    code = text.split("```python\n")[1].split("```")[0]
    lines = [line for line in code.splitlines() if line]
    assert lines[0].startswith("import samparser")
    calls = []
    import peft
    import transformers

    def loader(name):
        return classmethod(lambda cls, *arguments: calls.append((name, arguments[-1])) or FakeModel())

    class FakeModel:
        def merge_and_unload(self):
            return calls.append("merged")

    monkeypatch.setattr(transformers.SamModel, "from_pretrained", loader("base"))
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", loader("adapter"))
    exec(code, {})
    assert calls == [("base", "facebook/sam-vit-base"), ("adapter", "path or Hub id of this adapter"), "merged"]


def test_pefts_untouched_template_makes_room_for_a_card_that_says_something(adapter):
    before = pefts_card(adapter)
    text = write_card(adapter).read_text()
    assert "[More Information Needed]" in before
    assert "[More Information Needed]" not in text
    assert "base_model:adapter:facebook/sam-vit-base" in text
    assert text.count("- PEFT ") == 1


def test_a_template_that_somebody_filled_in_is_kept(adapter):
    pefts_card(adapter)
    path = adapter / "README.md"
    path.write_text(path.read_text().replace("# Model Card for Model ID", "# Livers in CT"))
    text = write_card(adapter).read_text()
    assert text.index("# Livers in CT") < text.index(BEGIN) < text.index(END) < text.index("## Model Details")
    assert text.count("[More Information Needed]") == path.read_text().count("[More Information Needed]") > 10


def test_saving_again_refreshes_the_section_and_nothing_else():
    first = model_card(INFO)
    edited = first.replace("# SVD coefficients for facebook/sam-vit-base", "# Livers in CT\n\nTrained in Ulm.")
    edited = edited.replace("<!-- Left for you", "Dice 0.93 on 10 cases.\n\n<!-- Left for you")
    edited = edited.replace("library_name: peft", "library_name: peft\ndatasets:\n- my/livers")
    again = model_card(CardInfo(**{**vars(INFO), "trained": {"coefficients": 800}}), edited)
    outside = lambda text: (text.split(BEGIN)[0].split("---")[2], text.split(END)[1])  # noqa: E731
    assert outside(again) == outside(edited)
    assert "Trained parameters: 800" in again
    assert "4,058,340" in edited
    assert "4,058,340" not in again
    assert ModelCard(again).data["datasets"] == ["my/livers"]


def test_a_card_that_says_the_same_is_not_touched(adapter):
    path = write_card(adapter)
    before = path.stat().st_mtime_ns, path.read_text()
    write_card(adapter)
    assert (path.stat().st_mtime_ns, path.read_text()) == before


def test_peft_has_nothing_to_add_to_our_card(adapter):
    import peft

    lines = write_card(adapter).read_text().splitlines()
    assert "### Framework versions" in lines
    assert f"- PEFT {peft.__version__}" in lines


@pytest.mark.parametrize("text", [f"# Mine\n{BEGIN}\nold", f"# Mine\n{END}\n{BEGIN}", f"# Mine\n{BEGIN}{BEGIN}{END}"])
def test_markers_that_do_not_pair_are_left_alone_with_a_warning(adapter, text):
    (adapter / "README.md").write_text(text)
    with pytest.warns(UserWarning, match=r"README.md has \d begin and \d end markers"):
        path = write_card(adapter)
    assert text in path.read_text()


def test_metadata_that_cannot_be_read_are_an_error_and_the_card_stays(adapter):
    broken = "---\ntags: [a\n---\n# Mine\n"
    (adapter / "README.md").write_text(broken)
    with pytest.raises(ValueError, match=r"README.md .*between its '---' lines.*YAML"):
        write_card(adapter)
    assert (adapter / "README.md").read_text() == broken


@pytest.mark.parametrize("base", [None, "", "/home/me/sam", "./sam", "C:\\models\\sam", "local/folder"])
def test_a_base_model_that_is_no_hub_id_is_left_to_fill_in(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "folder").mkdir(parents=True)
    data = ModelCardData(library_name="peft", base_model=base, tags=[f"base_model:adapter:{base}", "mine"])
    existing = f"---\n{data.to_yaml()}\n---\n# Mine\n"
    text = model_card(CardInfo(**{**vars(INFO), "base_model": base}), existing)
    data = ModelCard(text).data.to_dict()
    assert "base_model" not in data
    assert data["tags"] == ["mine", "samparser", "svd-coefficients"]
    assert "# base_model: fill in" in text
    assert not base or base not in text
    assert "model = ...  # the SamModel this adapter was trained on" in text


def test_a_base_model_that_its_author_filled_in_is_kept():
    existing = "---\nbase_model: facebook/sam-vit-huge\n---\n# Mine\n"
    assert (
        ModelCard(model_card(CardInfo(base_model="/home/me/sam"), existing)).data["base_model"]
        == "facebook/sam-vit-huge"
    )


def test_many_modules_are_shortened():
    text = model_card(CardInfo(**{**vars(INFO), "target_modules": [f"layers.{i}.qkv" for i in range(48)]}))
    assert "`layers.7.qkv`, and 40 more (all in `adapter_config.json`)" in text


def test_writing_a_card_warns_of_nothing(adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_card(adapter)


def test_the_hub_finds_the_scores_in_the_metadata_and_a_later_run_replaces_them(adapter):
    path = write_card(adapter)
    path.write_text(path.read_text() + "\nTrained in Ulm.\n")
    add_scores(path, "mIoU 84.21", {"mIoU": 0.84213, "F1": 0.91, "DSC": float("nan")}, dataset="nuclei", split="test")
    add_scores(path, "mIoU 70.00", {"mIoU": 0.7}, dataset="livers", split="test")
    write_card(adapter)
    add_scores(path, "mIoU 85.00", {"mIoU": 0.85, "F1": 0.92}, dataset="nuclei", split="test")
    card = ModelCard.load(path)
    results = {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results == {
        ("livers", "test", "mIoU"): 0.7,
        ("nuclei", "test", "mIoU"): 0.85,
        ("nuclei", "test", "F1"): 0.92,
    }
    assert {(r.task_type, r.metric_type) for r in card.data.eval_results} == {
        ("mask-generation", "mean_iou"),
        ("mask-generation", "f1"),
    }
    assert card.data.model_name == "SVD coefficients for facebook/sam-vit-base"
    assert "# license: fill in" in path.read_text().split("---")[1]
    assert "mIoU 85.00" in card.text
    assert "Trained in Ulm." in card.text
    assert "84.21" not in card.text
    assert "70.00" not in card.text


def test_a_card_without_metadata_gets_the_scores_in_its_text_only(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# Mine\n")
    add_scores(path, "mIoU 84.21", {"mIoU": 0.8421}, dataset="nuclei")
    text = path.read_text()
    assert text.startswith("# Mine\n\n<!-- scores: from here")
    assert "mIoU 84.21" in text


def test_scores_for_a_card_that_cannot_be_read_are_an_error_and_the_card_stays(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("---\ntags: [a\n---\n# Mine\n")
    with pytest.raises(ValueError, match=r"README.md .*between its '---' lines.*YAML"):
        add_scores(path, "mIoU 84.21", {"mIoU": 0.8421}, dataset="nuclei")
    assert path.read_text() == "---\ntags: [a\n---\n# Mine\n"


def test_the_card_of_an_adapter_for_sam_2_says_whose_mask_was_trained():
    card = model_card(replace(INFO, base_class="Sam2Model"))
    code = card[card.index("from peft import") : card.index("model.merge_and_unload()")]
    assert "from samparser.sam import family_of\n" in code
    assert "family_of(model).keep_single_mask(model)" in code
    assert "a Sam2Model in eval mode gives an unstable mask away" in card
    assert "keep_single_mask" not in model_card(INFO)
