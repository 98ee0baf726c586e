import pytest

from samparser.compare import ExperimentError, parse_experiment, with_settings


def test_settings_come_from_the_experiment_then_the_data_set_then_the_row(changed):
    def change(content):
        content["training"] = {"num_train_epochs": 1, "learning_rate": 1.0, "weight_decay": 3.0}
        content["data"][0]["training"] = {"learning_rate": 0.5, "weight_decay": 2.0}
        content["methods"][1]["training"] = {"weight_decay": 1.0}

    experiment = parse_experiment(changed(change))
    settings = experiment.train_settings(experiment.data[0], experiment.row("decoder"), learning_rate=0.25)
    assert (settings.num_train_epochs, settings.learning_rate, settings.weight_decay) == (1, 0.25, 1.0)


def test_a_cell_is_scored_with_the_kind_of_prompt_that_it_trains_with_unless_another_is_named(changed):
    def with_points(content):
        content["prompts"] = {"prompt": "point", "points": 3}
        content["methods"][1]["prompts"] = {"prompt": "box"}

    experiment = parse_experiment(changed(with_points))
    source = experiment.source("toy")
    by_row = {row.name: experiment.eval_settings(source, row) for row in experiment.methods}
    assert {name: scoring.eval_prompt for name, scoring in by_row.items()} == {
        "zero-shot": "point",
        "decoder": "box",
        "samparser": "point",
    }
    assert by_row["zero-shot"].eval_points == 3
    named = parse_experiment(
        changed(lambda content: (with_points(content), content.update(evaluation={"eval_prompt": "box"})))
    )
    assert {named.eval_settings(source, row).eval_prompt for row in named.methods} == {"box"}


def test_epochs_for_a_trial_hold_in_every_cell(experiment):
    shorter = with_settings(experiment, num_train_epochs=0.5)
    assert {shorter.train_settings(shorter.data[0], row).num_train_epochs for row in shorter.methods} == {0.5}
    with pytest.raises(ExperimentError, match="no field 'epoch'"):
        with_settings(experiment, epoch=1)
    with pytest.raises(ExperimentError, match="epochs is -1"):
        with_settings(experiment, num_train_epochs=-1)
