from samparser.compare import Column, Report, markdown


def run(scores, *, rates=None, cached=True):
    """A result with these scores of images a and b, from 0 to 1; F1 is larger by 0.1."""
    images = dict(zip("ab", scores, strict=True))
    f1 = {name: value + 0.1 for name, value in images.items()}
    means = {"miou": sum(scores) / 2, "f1": sum(scores) / 2 + 0.1}
    return {
        "scores": {"instance_image_mean": means},
        "units": {"miou": images, "f1": f1},
        "definitions": {"instance_image_mean": "a mean."},
        "rates": rates or {},
        "trained": {"total": 10, "by_part": {}, "bytes": 100},
        "time": {"seconds_per_step": 0.5, "cached": cached},
        "versions": {"torch": "1"},
        "git": None,
    }


def report(experiment, ours):
    low, high = experiment.search.trials
    trials = {
        "decoder": [run((0.1, 0.1), rates=low), run((0.2, 0.2), rates=high)],
        "samparser": [run((0.3, 0.3), rates=rates) for rates in experiment.row("samparser").trials],
    }
    runs = {
        "zero-shot": [run((0.4, 0.6))],
        "decoder": [run((0.5, 0.7), rates=high), run((0.6, 0.8), rates=high)],
        "samparser": [run(scores, rates=experiment.row("samparser").trials[0]) for scores in ours],
    }
    return Report(experiment, [Column(experiment.data[0], runs, trials, 6, 2)], {})


def lines(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_table_equals_a_computation_by_hand(experiment):
    # Ours minus decoder: seed 0: 0.1, 0.1; seed 1: 0.1, 0.1, so the error is 0.
    text = markdown(report(experiment, [(0.6, 0.8), (0.7, 0.9)]))
    # Seed means 0.7 and 0.8: mean 75.0, deviation 7.07.
    assert lines(text, "| ours")[0] == (
        "| ours | 75.0 ± 7.1 | 84.2 | +10.00 ± 0.00 | +1.3 | 85.0 ± 7.1 | 90.9 | +10.00 ± 0.00 | – |"
    )
    assert lines(text, "| decoder only")[0] == "| decoder only | 65.0 ± 7.1 | 82.9 | – | – | 75.0 ± 7.1 | – | – | – |"
    # Zero-shot is the same for both seeds: minus decoder -0.1, -0.1 and -0.2, -0.2; seeds' variance 0.005 over 2.
    # Three standard errors of two seeds are not enough: Student's t with one degree of freedom asks for 12.7.
    assert lines(text, "| zero-shot")[0] == (
        "| zero-shot | 50.0 | – | ≈ -15.00 ± 5.00 | – | 60.0 | – | ≈ -15.00 ± 5.00 | – |"
    )


def test_a_difference_within_two_standard_errors_is_marked(experiment):
    # Seed 0: 0.2, -0.1; seed 1: 0.2, -0.1: mean 0.05, units' variance 0.045 over 2, error 0.15.
    text = markdown(report(experiment, [(0.7, 0.6), (0.8, 0.7)]))
    assert "| ≈ +5.00 ± 15.00 |" in lines(text, "| ours")[0]
    assert "≈ marks differences within two standard errors" in text


def test_the_rates_are_shown_with_their_trials_and_the_edge_is_named(experiment):
    training = lines(markdown(report(experiment, [(0.6, 0.8), (0.7, 0.9)])), "| Toy | decoder only")[0]
    assert training == "| Toy | decoder only | yes | 0.5 | lr 0.001 (edge) | lr 0.0001: 10.0; **lr 0.001: 20.0** |"


def test_the_numbers_as_json_hold_what_the_page_shows(experiment):
    rows = report(experiment, [(0.6, 0.8), (0.7, 0.9)]).to_json()["data"]["toy"]["rows"]
    ours = rows["samparser"]["metrics"]["miou"]
    assert ours["seeds"] == [0.7, 0.8]
    assert (ours["paper_percent"], ours["paper_difference_percent"]) == (84.2, 1.3)
    assert ours["difference"]["clear"]
    assert rows["decoder"]["trials"][1] == {"rates": {"learning_rate": 1e-3}, "scores": {"miou": 0.2, "f1": 0.1 + 0.2}}
