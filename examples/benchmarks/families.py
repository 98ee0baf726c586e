"""What cached features leave of a forward and of a training step in every family, counted without weights."""

from collections.abc import Callable, Mapping

from transformers import PreTrainedConfig

from samparser.methods.cost import forward_cost, method_cost

from .measure import table

GMAC, MB = 1e9, 1e6


def measure_families(configs: Mapping[str, Callable[[], PreTrainedConfig]]) -> str:
    """A table with a row for each config; one whose model needs a package that is missing is named below it."""
    rows, notes = [], []
    for name, config in configs.items():
        try:
            rows.append([name, *_counts(config())])
        except ImportError as error:
            notes.append(f"- {name} is not counted: {' '.join(str(error).split())}")
    text = (
        "10^9 multiply-accumulates (GMAC) of matrix products, convolutions and attention, for one image and one box. "
        "From features: neck and decoder, and their part of the whole forward; training step: forward and backward "
        "with coefficients of the neck and decoder, from features, and its part of one from pixels:"
    )
    header = [
        "model",
        "before the neck",
        "neck",
        "decoder",
        "each further box",
        "from features",
        "training step",
        "features, fp16",
    ]
    return "\n\n".join(filter(None, [text, table(header, rows), "\n".join(notes)]))


def _counts(config: PreTrainedConfig) -> list[str]:
    forward, method = forward_cost(config), method_cost("samparser", config=config)
    assert method.cached_step_macs is not None
    return [
        *(_gmac(part) for part in (forward.before_neck, forward.neck, forward.decoder, forward.further_box)),
        f"1/{1 / forward.cached_share:.0f}",
        f"{method.cached_step_macs / GMAC:.1f}, 1/{method.step_macs / method.cached_step_macs:.0f}",
        f"{forward.feature_bytes / MB:.1f} MB",
    ]


def _gmac(macs: int) -> str:
    return f"{macs / GMAC:.2f}"
