import json
from dataclasses import replace

import pytest
from transformers import HfArgumentParser, TrainingArguments

from samparser.training import EvalSettings, TrainSettings
from samparser.training.refused import REFUSED


@pytest.mark.parametrize(
    ("recipe", "learning_rate", "weight_decay", "epochs", "lambda_focal"),
    [
        ("medical", 1e-6, 5e-4, 25, 0.0),
        ("natural", 1.5e-4, 5e-5, 10, 0.5),
        ("remote-sensing", 1.5e-4, 5e-5, 10, 0.5),
    ],
)
def test_a_recipe_fills_in_what_the_paper_says(recipe, learning_rate, weight_decay, epochs, lambda_focal):
    settings = TrainSettings(recipe=recipe)
    assert settings.learning_rate == learning_rate
    assert settings.coefficient_lr == learning_rate
    assert settings.weight_decay == weight_decay
    assert settings.num_train_epochs == epochs
    assert settings.lambda_focal == lambda_focal
    assert settings.per_device_train_batch_size == 1


def test_the_recipe_for_ones_own_images_is_the_default_and_moves_the_coefficients():
    own, natural = TrainSettings(), TrainSettings(recipe="natural")
    assert (own.recipe, own.coefficient_lr, own.learning_rate) == ("own", 1e-2, 1.5e-4)
    differing = {name for name, value in natural.recorded().items() if own.recorded()[name] != value}
    assert differing == {"recipe", "coefficient_lr"}
    assert TrainSettings(learning_rate=1e-3).coefficient_lr == 1e-2
    assert TrainSettings(learning_rate=1e-3, recipe="natural").coefficient_lr == 1e-3


def test_a_value_that_is_given_overrides_the_recipe():
    settings = TrainSettings(recipe="medical", learning_rate=0.5, lambda_focal=0.0, weight_decay=0.0)
    assert (settings.learning_rate, settings.weight_decay, settings.num_train_epochs) == (0.5, 0.0, 25)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("recipe", "surgical", "'surgical'; known are own, medical, natural, remote-sensing"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be greater than 0"),
        ("coefficient_lr", -1.0, "coefficient_lr is -1.0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must not be negative"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size is 0; it must be at least 1"),
        ("lambda_focal", 1.5, "lambda_focal is 1.5; it must lie between 0 and 1"),
        ("eval_strategy", "daily", "eval_strategy is 'daily'; known are no, steps, epoch"),
        ("metric_for_best_model", "dice", "metric_for_best_model is 'dice'; known are miou, f1"),
        ("optim", "lion_king", "optim is 'lion_king'; known are adam, adamw_torch,"),
        ("max_steps", 0, "max_steps is 0; give a number of steps, or -1"),
        ("logging_steps", 0, "logging_steps is 0; it must be at least 1"),
        ("eval_steps", 3, "eval_steps is 3, but eval_strategy is epoch; give it steps"),
        ("save_strategy", "no", "save_strategy is no; epoch or steps"),
        ("num_train_epochs", float("nan"), "num_train_epochs is nan; it must be greater than 0"),
        ("save_total_limit", 1, "save_total_limit is 1; at least 2"),
        ("learning_rate", float("inf"), "learning_rate is inf; it must be greater than 0, and finite"),
        ("weight_decay", float("inf"), "weight_decay is inf; it must not be negative, and finite"),
        ("seed", -1, "seed is -1; it must lie between 0 and 2**32 - 1"),
        ("seed", 2**32, "seed is 4294967296; it must lie between 0 and 2**32 - 1"),
        ("max_steps", 2**70, "max_steps is 1180591620717411303424; give a number of steps"),
        ("per_device_train_batch_size", 2**70, "it must be at least 1, and at most 2,147,483,647"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(field, value, said):
    with pytest.raises(ValueError) as error:
        TrainSettings(**{field: value})
    assert said in str(error.value)


def test_an_evaluation_batch_of_zero_is_refused():
    with pytest.raises(ValueError, match="eval_batch is 0; it must be at least 1"):
        EvalSettings(eval_batch=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1: the loss is the paper's"),
        ({"train_sampling_strategy": "group_by_length"}, "'group_by_length': images have no length to group them by"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is True: it changes the batch size"),
        (
            {"per_device_eval_batch_size": 4},
            "per_device_eval_batch_size is 4: scores are made by EvalSettings: eval_b",
        ),
        ({"remove_unused_columns": True}, "remove_unused_columns is True: samples are no table"),
        ({"resume_from_checkpoint": "x"}, "resume_from_checkpoint is 'x': give resume"),
        ({"save_only_model": True}, "save_only_model is True: a run without its optimizer cannot be resumed"),
        ({"fsdp": "full_shard"}, "fsdp is 'full_shard': the adapter and the scores need whole weights"),
        ({"push_to_hub": True}, "push_to_hub needs the name of the repository; give hub_model_id"),
        ({"hub_model_id": "a/b"}, "hub_model_id says how to upload the adapter; give push_to_hub as well"),
        ({"optim_args": "a=1"}, "optim_args is 'a=1', but optim is adam, which takes adam_beta1"),
        (
            {"eval_strategy": "no", "early_stopping_patience": 2},
            "early_stopping_patience is 2, but eval_strategy is",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_not_ignored(fields, said):
    with pytest.raises(ValueError) as error:
        TrainSettings(**fields)
    assert said in str(error.value)


def test_every_refused_field_is_one_of_transformers():
    known = set(TrainingArguments.__dataclass_fields__)
    assert REFUSED.keys() - known <= {"parallelism_config"}
    assert set(TrainSettings.COMMON) <= known


def test_the_command_line_gives_the_defaults_and_takes_lists_with_commas():
    parser = HfArgumentParser(TrainSettings)
    (settings,) = parser.parse_args_into_dataclasses(args=[])
    assert settings.recorded() == TrainSettings().recorded()
    assert set(settings.recorded()) == set(TrainSettings.usual())
    (settings,) = parser.parse_args_into_dataclasses(
        args=["--report_to", "tensorboard,wandb", "--gradient_checkpointing"]
    )
    assert settings.report_to == ["tensorboard", "wandb"]
    assert settings.gradient_checkpointing


def test_recorded_are_our_fields_the_common_ones_and_what_was_chosen():
    settings = TrainSettings(adam_beta2=0.95, hub_token="secret", push_to_hub=True, hub_model_id="me/it")
    recorded = json.loads(json.dumps(settings.recorded()))
    assert recorded["learning_rate"] == 1.5e-4
    assert recorded["adam_beta2"] == 0.95
    assert "adam_beta1" not in recorded
    assert "accelerator_config" not in recorded
    assert "secret" not in json.dumps(recorded)
    settings.ddp_timeout = 60
    assert settings.recorded()["ddp_timeout"] == 60


def test_checkpoints_are_saved_whenever_scores_are_made():
    steps = TrainSettings(eval_strategy="steps", eval_steps=3)
    assert (steps.save_strategy, steps.save_steps, steps.load_best_model_at_end) == ("steps", 3, True)
    never = TrainSettings(eval_strategy="no")
    assert (never.save_strategy, never.load_best_model_at_end) == ("epoch", False)


@pytest.mark.parametrize("fields", [{}, {"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 3}])
def test_settings_can_be_copied_with_another_value(fields):
    settings = replace(TrainSettings(**fields), seed=4)
    expected = {**TrainSettings(**fields).recorded(), "seed": 4}
    assert {name: settings.recorded()[name] for name in expected} == expected


def test_what_a_release_of_transformers_fills_in_where_nothing_is_sharded_can_be_given(monkeypatch):
    TrainSettings(fsdp=[], fsdp_config={"min_num_params": 0, "xla": False})
    with pytest.raises(ValueError, match=r"fsdp_config is \{'min_num_params': 5\}: the adapter and the scores need"):
        TrainSettings(fsdp_config={"min_num_params": 5})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"told to use FSDP \(distributed_type, use_fsdp\): .*DDP\), which takes the"):
        TrainSettings()
