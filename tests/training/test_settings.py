import pytest

from samparser.training import EvalSettings, TrainSettings


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


def test_a_value_that_is_given_overrides_the_recipe():
    settings = TrainSettings(recipe="medical", learning_rate=0.5, lambda_focal=0.0, weight_decay=0.0)
    assert (settings.learning_rate, settings.weight_decay, settings.num_train_epochs) == (0.5, 0.0, 25)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("recipe", "surgical", "'surgical'; known are medical, natural, remote-sensing"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be greater than 0"),
        ("coefficient_lr", -1.0, "coefficient_lr is -1.0"),
        ("weight_decay", -0.1, "weight_decay is -0.1; it must not be negative"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size is 0; it must be at least 1"),
        ("lambda_focal", 1.5, "lambda_focal is 1.5; it must lie between 0 and 1"),
        ("eval_strategy", "daily", "eval_strategy is 'daily'; known are no, steps, epoch"),
        ("metric_for_best_model", "dice", "metric_for_best_model is 'dice'; known are miou, f1"),
        ("save_total_limit", 1, "save_total_limit is 1; at least 2"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(field, value, said):
    with pytest.raises(ValueError) as error:
        TrainSettings(**{field: value})
    assert said in str(error.value)


def test_an_evaluation_batch_of_zero_is_refused():
    with pytest.raises(ValueError, match="eval_batch is 0; it must be at least 1"):
        EvalSettings(eval_batch=0)
