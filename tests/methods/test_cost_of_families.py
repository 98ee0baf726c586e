"""What methods and forwards cost in models of the published sizes: exact counts, on models without weights."""

import functools
from pathlib import Path

import pytest
import transformers

from samparser.methods import build, describe
from samparser.methods.cost import count_macs, forward_cost, meta_model, method_cost
from tests.sam.tiny import HERE, TINY, TinyStagesConfig, make_tiny

STAGES = {
    "sam2-tiny": ([96, 192, 384, 768], [1, 2, 7, 2]),
    "sam2-base-plus": ([112, 224, 448, 896], [2, 3, 16, 3]),
    "sam2-large": ([144, 288, 576, 1152], [2, 6, 36, 4]),
}


@functools.cache
def config_of_size(name):
    """The configuration of a published size as far as it decides shapes; no test may change it."""
    if name in STAGES:
        config = transformers.Sam2Config()
        vision, (widths, blocks) = config.vision_config, STAGES[name]
        vision.backbone_channel_list, vision.backbone_config.embed_dim_per_stage = widths[::-1], widths
        vision.backbone_config.hidden_size, vision.backbone_config.blocks_per_stage = widths[0], blocks
        first = 1 if name == "sam2-tiny" else 2
        vision.backbone_config.num_attention_heads_per_stage = [first * 2**stage for stage in range(4)]
        if name == "sam2-large":
            vision.backbone_config.global_attention_blocks = [23, 33, 43]
        return config
    if name == "edgetam":
        if name not in TINY:
            pytest.skip(f"transformers {HERE} does not read EdgeTAM's configuration offline")
        # Its backbone is one of timm's, whose last maps are these wide; neck and decoder see nothing else of it.
        stages = TinyStagesConfig(channels=[48, 96, 192, 384])
        return transformers.EdgeTamConfig(
            vision_config={"backbone_config": stages, "backbone_channel_list": [384, 192, 96, 48]}
        )
    classes = {"sam": "SamConfig", "sam_hq": "SamHQConfig", "sam3_tracker": "Sam3TrackerConfig"}
    return getattr(transformers, classes[name])()


DECODER = {"sam": 4_058_340, "sam_hq": 5_129_444} | dict.fromkeys((*STAGES, "edgetam", "sam3_tracker"), 4_215_109)
NECK = {
    **{"sam": 512, "sam_hq": 512, "sam2-tiny": 800, "sam2-base-plus": 848, "sam2-large": 912},
    **{"edgetam": 592, "sam3_tracker": 1_536},
}
# Beside the mask decoder where that trains; None where the method is refused.
BESIDE_THE_DECODER = {
    "full-neck": {"sam_hq": 787_456, "sam2-tiny": 369_664, "edgetam": 185_344, "sam3_tracker": 6_949_632},
    "full": {"sam_hq": 89_677_132, "sam2-tiny": 27_225_612, "sam3_tracker": 453_192_524},
    "lora": {"sam_hq": 147_456, "sam2-tiny": 69_888, "edgetam": None, "sam3_tracker": 524_288},
    "lora-qkv": {"sam_hq": 147_456, "sam2-tiny": 72_576, "edgetam": None, "sam3_tracker": 786_432},
    "adapter": {"sam_hq": 3_598_848, "sam2-tiny": 1_177_968, "edgetam": None, "sam3_tracker": 12_742_656},
    "adapter-houlsby": {"sam_hq": 3_550_464, "sam2-tiny": 1_153_272, "edgetam": None, "sam3_tracker": 12_621_824},
    "transformer": {"sam_hq": 36_864, "sam2-tiny": 18_816, "edgetam": None, "sam3_tracker": 196_608},
    "transformer+conv": {"sam_hq": 37_376, "sam2-tiny": 19_616, "edgetam": None, "sam3_tracker": 198_144},
    "bases": {"sam_hq": 917_504, "sam2-tiny": 545_792, "edgetam": 298_240, "sam3_tracker": 2_621_440},
    "bases+coefficients": {"sam_hq": 918_016, "sam2-tiny": 546_592, "edgetam": 298_832, "sam3_tracker": 2_622_976},
}
# With the decoder frozen.
ALONE = {
    "expansion": {"sam_hq": 128, "sam2-tiny": 256, "edgetam": 256, "sam3_tracker": 384},
    "attention": {"sam_hq": 18_432, "sam2-tiny": 8_736, "edgetam": None, "sam3_tracker": 131_072},
    "lora-neck": {"sam_hq": 3_584, "sam2-tiny": 2_464, "edgetam": None, "sam3_tracker": 10_240},
}


def trained(method, name, **options):
    return describe(build(method, meta_model(config_of_size(name)), **options)).trained


@pytest.mark.parametrize("name", NECK)
def test_the_neck_s_coefficients_of_every_published_size(name):
    assert trained("samparser-coefficients", name) == {"neck": NECK[name]}
    assert trained("samparser", name) == {"neck": NECK[name], "mask decoder": DECODER[name]}


@pytest.mark.parametrize("name", [name for name in NECK if not name.startswith("sam_") and name != "sam"])
def test_the_convolutions_on_the_way_to_the_decoder_hold_96_more(name):
    assert trained("samparser-coefficients", name, skips=True) == {"neck": NECK[name], "mask decoder": 96}


def test_sam_3_has_4096_coefficients_that_reach_a_mask_with_its_transposed_convolutions():
    assert trained("samparser-coefficients", "sam3_tracker", transposed=True) == {"neck": 4_096}
    assert trained("samparser", "sam3_tracker", transposed=True)["neck"] == 4_096


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [(method, name, count) for method, row in BESIDE_THE_DECODER.items() for name, count in row.items()],
)
def test_every_method_trains_so_many_parameters_beside_the_decoder(method, name, count):
    if count is None:
        with pytest.raises(TypeError, match=f"Method '{method.replace('+', '.')}'.*convolutional network"):
            trained(method, name)
    else:
        found = trained(method, name)
        assert found.pop("mask decoder") == DECODER[name]
        assert sum(found.values()) == count


@pytest.mark.parametrize(
    ("method", "name", "count"), [(method, name, count) for method, row in ALONE.items() for name, count in row.items()]
)
def test_methods_that_leave_the_decoder_frozen_train_so_many(method, name, count):
    if count is None:
        with pytest.raises(TypeError, match=f"Method '{method}'"):
            trained(method, name)
    else:
        found = trained(method, name)
        assert sum(found.values()) == count
        assert trained(method, name, decoder=True) == {**found, "mask decoder": DECODER[name]}


@pytest.mark.parametrize("name", NECK)
def test_the_decoder_has_as_many_parameters_in_every_size(name):
    assert DECODER.keys() == NECK.keys()
    assert trained("decoder", name) == {"mask decoder": DECODER[name]}


# GMAC before the neck, in it (with conv_s0 and conv_s1), in the decoder for a box and for another one; MB of features.
FORWARD = {
    "sam": (482.8, 3.22, 1.81, 1.81, 6.3),
    "sam_hq": (482.8, 3.22, 8.40, 4.24, 12.6),
    "sam2-tiny": (142.5, 3.83, 1.83, 1.83, 23.6),
    "sam3_tracker": (2699.3, 108.46, 2.31, 2.31, 10.6),
}


@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_is_what_comes_before_the_neck_the_neck_and_the_decoder(name):
    cost = forward_cost(config_of_size(name))
    parts = [cost.before_neck, cost.neck, cost.decoder]
    gmac = tuple(round(part / 1e9, digits) for part, digits in zip(parts, (1, 2, 2), strict=True))
    assert (*gmac, round(cost.further_box / 1e9, 2), round(cost.feature_bytes / 1e6, 1)) == FORWARD[name]
    assert cost.cached_share == sum(parts[1:]) / sum(parts)
    whole, _ = count_macs(meta_model(config_of_size(name)).requires_grad_(False))
    assert sum(parts) == whole


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("method", ["decoder", "samparser"])
def test_a_cached_step_leaves_out_what_comes_before_the_neck(model_type, method):
    config = make_tiny(model_type).config
    cost, forward = method_cost(method, config=config), forward_cost(config)
    assert cost.step_macs - cost.cached_step_macs == forward.before_neck > 0
    assert cost.merged_macs == forward.before_neck + forward.neck + forward.decoder <= cost.forward_macs
    assert cost.form == ("as run" if method == "decoder" else "factored")


@pytest.mark.parametrize("model_type", ["sam2", "sam3_tracker"])
def test_coefficients_beside_the_neck_are_counted_in_three_layers_too(model_type):
    config = make_tiny(model_type).config
    options = {"skips": True, "transposed": model_type == "sam3_tracker"}
    cost = method_cost("samparser-coefficients", options, config)
    assert cost.form == "factored"
    assert cost.forward_macs > method_cost("samparser-coefficients", config=config).forward_macs


def test_a_configuration_for_videos_is_counted_as_that_of_single_images():
    config = transformers.Sam2VideoConfig()
    assert type(model := meta_model(config)) is transformers.Sam2Model
    assert (model.config.model_type, config.model_type) == ("sam2", "sam2_video")
    assert forward_cost(config) == forward_cost(transformers.Sam2Config())
    tracker = meta_model(transformers.Sam3VideoConfig())
    assert type(tracker) is transformers.Sam3TrackerModel
    assert describe(build("samparser-coefficients", tracker)).total == 1_536


def test_a_configuration_of_no_family_is_refused_with_the_reason():
    with pytest.raises(TypeError, match=r"Counting needs the config of a SamModel or .*got a Sam3Config.*exemplars"):
        meta_model(transformers.Sam3Config())
    with pytest.raises(TypeError, match=r"got a BertConfig of type 'bert'\.$"):
        meta_model(transformers.BertConfig())


def test_the_page_of_methods_has_these_counts():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    start = next(index for index, row in enumerate(rows) if row[1:2] == ["SAM-HQ ViT-B"])
    families = ("sam_hq", "sam2-tiny", "edgetam", "sam3_tracker")
    expected = {
        "mask decoder": [DECODER[name] for name in families],
        "`samparser`, `samparser-coefficients`": [NECK[name] for name in families],
        **{
            f"`{name}`": [row.get(family, "the rest") for family in families]
            for name, row in (BESIDE_THE_DECODER | ALONE).items()
        },
    }
    shown = {
        name: ["refused" if count is None else count if isinstance(count, str) else f"{count:,}" for count in row]
        for name, row in expected.items()
    }
    assert {row[0]: row[1:] for row in rows[start + 2 : start + 2 + len(shown)]} == shown
