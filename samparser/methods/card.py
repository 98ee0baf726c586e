"""Model card, README.md, of a saved adapter: what it is, its scores, how to load it, what is left to its author.

`PeftModel.save_pretrained` writes a README.md from a general template; `write_card` runs after it and reads what it
wrote, so it can also be called on any saved folder again. `add_scores` puts the scores of a run into the text and into
the metadata, where the Hub shows them. Both write between two markers, anew every time; everything outside of them is
the author's and is kept.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from yaml import YAMLError  # type: ignore[import-untyped]

from samparser._files import replacing
from samparser._untrusted import fits, read_json, shown
from samparser._version import __version__
from samparser.sam.families import FAMILIES

from .card_numbers import count_trained, read_terms, what_they_saw, what_trains

BEGIN = "<!-- samparser: from here to the end marker, every save writes this anew. Your own text goes outside. -->"
END = "<!-- samparser: end -->"

_SCORES_BEGIN = "<!-- scores: from here to the end mark, every training run writes this anew -->"
_SCORES_END = "<!-- scores: end -->"

TAGS = ("samparser", "svd-coefficients")

_OWN_SECTIONS = """\
## Data, scores and limits

<!-- Left for you: which data it was trained on and under which terms, its scores with their definitions and those of
the base model beside them, and where it should not be used. -->
"""

_PAPER = "https://arxiv.org/abs/2308.14604"


@dataclass(frozen=True)
class CardInfo:
    """What a model card says about an adapter; `read_info` finds all of it in a saved folder."""

    base_model: str | None
    """Hub id or local path of the base model."""
    base_class: str | None = None
    """Class of the base model, such as "SamModel"."""
    base_library: str | None = None
    """Module the class comes from, such as "transformers.models.sam.modeling_sam"."""
    target_modules: Sequence[str] = ()
    trained: Mapping[str, int] = field(default_factory=dict)
    """Trained parameters by kind: {"coefficients": 512, "mask_decoder": 4058340}."""
    adapter_bytes: int = 0
    """Size of the adapter's file."""
    frame: str | None = None
    """How the base takes images, where that was chosen when it was loaded: "squashed"."""
    expansion: str | None = None
    """The kind of the terms that were trained: "pairs"."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The share of the gradient's signal that the numbers saw, by layer: {"vision_encoder.neck.conv1": 0.56}."""


def read_info(folder: str | Path) -> CardInfo:
    """Read what the card needs from the config and the weights of a saved adapter.

    Raises:
        FileNotFoundError: The folder lacks adapter_config.json or adapter_model.safetensors.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}, so it is no saved adapter: no model card is written.")
    config = read_json(folder / CONFIG_NAME)
    fields = config if isinstance(config, dict) else {}
    mapping, targets = fields.get("auto_mapping") or {}, fields.get("target_modules") or []
    if not isinstance(config, dict) or not isinstance(mapping, dict) or not fits(targets, str | list[str]):
        raise ValueError(f"{folder / CONFIG_NAME} holds {shown(config)}, which is no configuration of an adapter.")
    return CardInfo(
        base_model=config.get("base_model_name_or_path") or None,
        base_class=mapping.get("base_model_class"),
        base_library=mapping.get("parent_library"),
        target_modules=[targets] if isinstance(targets, str) else sorted(targets),
        trained=count_trained(folder / SAFETENSORS_WEIGHTS_NAME, config),
        adapter_bytes=(folder / SAFETENSORS_WEIGHTS_NAME).stat().st_size,
        frame=_chosen_frame(folder),
        **read_terms(config),
    )


def _chosen_frame(folder: Path) -> str | None:
    path = folder / "method.json"
    content = read_json(path) if path.is_file() else None
    frame = content.get("frame") if isinstance(content, dict) else None
    return frame if isinstance(frame, str) else None


def model_card(info: CardInfo, existing: str | None = None) -> str:
    """Write the whole text of the card.

    Args:
        info: What it says.
        existing: The card so far. Its metadata and all of its text outside the markers are kept, unless it is PEFT's
            template as nobody has touched it yet.

    Raises:
        ValueError: The metadata of `existing`, between its first two `---` lines, are not valid YAML.
    """
    found, body = _parse(existing) if existing else (ModelCardData(), "")
    data = _metadata(info, found)
    if not body.strip() or _is_untouched_template(body):
        body = f"# {_title(info)}\n\n{_section(info)}\n\n{_OWN_SECTIONS}"
    else:
        body = _replace_section(body, _section(info))
    return f"---\n{data}---\n{body.lstrip(chr(10)).rstrip()}\n"


def _parse(text: str) -> tuple[ModelCardData, str]:
    """The metadata and the text of a card."""
    try:
        card = ModelCard(text)
        return cast(ModelCardData, card.data), card.text
    except YAMLError as error:
        raise ValueError(
            f"README.md cannot be refreshed: the metadata between its '---' lines are not valid YAML ({error}). "
            "Mend them or delete the file, and save again."
        ) from error


def write_card(folder: str | Path) -> Path:
    """Write or refresh README.md in the folder of a saved adapter and return its path.

    The file is replaced whole or left as it was.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.

    Raises:
        FileNotFoundError: The folder is not that of a saved adapter.
        ValueError: The metadata of the README.md that is there are not valid YAML.
    """
    path = Path(folder) / "README.md"
    info = read_info(folder)
    existing = path.read_text(encoding="utf-8") if path.exists() else None
    _write(path, model_card(info, existing), existing)
    return path


def add_scores(
    path: str | Path, text: str, scores: Mapping[str, float], *, dataset: str, split: str | None = None
) -> None:
    """Put the scores of a run into a card, in place of those of an earlier run; other text stays.

    Args:
        path: The card. One without metadata is its author's own and is given none: the scores are in its text only.
        text: What they are and what they are of, in Markdown.
        scores: The figures for the Hub by name, from 0 to 1, such as {"mIoU": 0.84}; those that are no number are left
            out.
        dataset: The name of the data set.
        split: The part of it that was scored.

    Raises:
        ValueError: The metadata of the card are not valid YAML.
    """
    path = Path(path)
    existing = path.read_text(encoding="utf-8")
    start, end = existing.find(_SCORES_BEGIN), existing.find(_SCORES_END)
    section = f"{_SCORES_BEGIN}\n\n{text}\n\n{_SCORES_END}"
    if 0 <= start < end:
        card = existing[:start] + section + existing[end + len(_SCORES_END) :]
    else:
        card = f"{existing.rstrip()}\n\n{section}\n"
    if card.startswith("---\n"):
        results = [_result(name, value, dataset, split) for name, value in scores.items() if math.isfinite(value)]
        card = _with_results(card, results, path.parent.name)
    _write(path, card, existing)


def _result(name: str, value: float, dataset: str, split: str | None) -> EvalResult:
    return EvalResult(
        task_type="mask-generation",
        task_name="Promptable segmentation",
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=split,
        metric_type={"mIoU": "mean_iou"}.get(name, name.lower()),
        metric_name=name,
        metric_value=round(float(value), 4),
    )


def _with_results(text: str, results: list[EvalResult], name: str) -> str:
    """The card with these results in its metadata; those of other data sets and measures stay, comments too."""
    data, body = _parse(text)
    _, head, rest = text.split("---\n", 2)
    kept = [old for old in data.eval_results or () if not any(old.is_equal_except_value(new) for new in results)]
    heading = re.search(r"^# (.*)$", body, flags=re.MULTILINE)
    data.eval_results = [*kept, *results] or None
    data.model_name = data.model_name or (heading[1] if heading and "Model ID" not in heading[1] else name)
    comments = [line for line in head.splitlines() if line.startswith("#")]
    return "\n".join(["---", data.to_yaml(), *comments, "---", rest])


def _write(path: Path, text: str, existing: str | None) -> None:
    if text != existing:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def _metadata(info: CardInfo, data: ModelCardData) -> str:
    """The YAML of the card. Only what is ours is set; a licence is never guessed."""
    hub_id = _hub_id(info.base_model)
    notes = []
    if hub_id:
        data["base_model"] = hub_id
    elif not data.get("base_model") or _hub_id(data["base_model"]) is None:
        # The Hub refuses a path here, and a path says nothing to others.
        data.pop("base_model", None)
        notes.append("# base_model: fill in the id of the base model on the Hub")
    data["library_name"] = "peft"
    kept = [tag for tag in data.get("tags") or [] if not _names_a_path(tag)]
    data["tags"] = sorted({*kept, *TAGS})
    if not data.get("license"):
        notes.append("# license: fill in; an adapter is commonly given under the licence of its base model")
    return "\n".join([data.to_yaml(), *notes]) + "\n"


def _names_a_path(tag: Any) -> bool:
    """Whether a tag is PEFT's `base_model:adapter:...` with something that is no id on the Hub."""
    base = str(tag).removeprefix("base_model:adapter:")
    return base != tag and _hub_id(base) is None


def _hub_id(name: Any) -> str | None:
    """`name` if it can be the id of a repository on the Hub; None for local folders and anything else."""
    # PEFT writes "None" for models without a name.
    if not isinstance(name, str) or name in ("", "None") or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _is_untouched_template(body: str) -> bool:
    """Whether a card is the one PEFT or transformers make from huggingface_hub's template, with nothing filled in."""
    template = ModelCard.from_template(ModelCardData()).text

    added = (
        "### Framework versions",
        "- PEFT ",
        "This is the model card of a 🤗 transformers model that has been pushed",
        "This adapter needs `import samparser`",
    )

    def plain(text: str) -> list[str]:
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith(added)]

    return plain(body) == plain(template)


def _replace_section(body: str, section: str) -> str:
    """The body with our section where it was, or after the first heading where it was not there yet."""
    begins, ends = body.count(BEGIN), body.count(END)
    if begins == ends == 1 and body.index(BEGIN) < body.index(END):
        before, rest = body.split(BEGIN)
        return before + section + rest.split(END)[1]
    if begins or ends:
        warnings.warn(
            f"README.md has {begins} begin and {ends} end markers of samparser where one pair in order is needed; its "
            "text is left as it is. Delete the markers to have the section written again.",
            stacklevel=4,
        )
        return body
    heading = re.search(r"^# .*$", body, flags=re.MULTILINE)
    at = heading.end() if heading else 0
    return f"{body[:at]}\n\n{section}\n\n{body[at:].lstrip()}"


def _title(info: CardInfo) -> str:
    base = _hub_id(info.base_model) or info.base_class
    return f"SVD coefficients for {base}" if base else "SVD coefficients"


def _section(info: CardInfo) -> str:
    return "\n\n".join([BEGIN, _what_it_is(info), _how_to_use_it(info), _versions(), END])


def _what_it_is(info: CardInfo) -> str:
    base = _hub_id(info.base_model)
    link = f"[{base}](https://huggingface.co/{base})" if base else "a base model that has to be named here"
    total = sum(info.trained.values())
    parts = ", ".join(f"{count:,} {'in ' if _is_module(kind) else ''}{kind}" for kind, count in info.trained.items())
    detail = f" ({parts})" if len(info.trained) > 1 else ""
    return f"""\
An adapter for {link}, trained with [SAM-PARSER]({_PAPER}): each adapted weight is split once, `W = U diag(p) Vh`; the
bases `U` and `Vh` stay frozen and {what_trains(info.trained, info.expansion)} are trained.

- Trained parameters: {total:,}{detail}
- Adapted modules: {_modules(info.target_modules)}
- Size of the adapter's file: {info.adapter_bytes:,} bytes{what_they_saw(info.shares)}"""


def _is_module(kind: str) -> bool:
    return kind not in ("coefficients", "terms", "bases", "other parameters")


def _modules(names: Sequence[str], shown: int = 8) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:shown])
    more = len(names) - shown
    return f"{listed}, and {more} more (all in `{CONFIG_NAME}`)" if more > 0 else listed or f"see `{CONFIG_NAME}`"


def _how_to_use_it(info: CardInfo) -> str:
    base = _hub_id(info.base_model)
    if base and info.base_class and (info.base_library or "").startswith("transformers"):
        import_base = f"from transformers import {info.base_class}\n"
        load_base = f'{info.base_class}.from_pretrained("{base}")'
    else:
        import_base = ""
        load_base = f"...  # the {info.base_class or 'model'} this adapter was trained on, with its weights"
    own_mask, why, imports = "", "", ""
    if info.base_class in {family.model_class for family in FAMILIES.values() if family.replaces_unstable_masks}:
        imports = "from samparser.sam import family_of\n"
        own_mask = "family_of(model).keep_single_mask(model)  # the mask that was trained, also where it is unstable\n"
        why = (
            f"\n\nAs released, a {info.base_class} in eval mode gives an unstable mask away for one of three others. "
            "Training this\nadapter reached the head of the single mask alone, and its scores are those of that mask."
        )
    frame = ""
    if info.frame is not None:
        frame = (
            f"\n\nIt was trained with the frame `{info.frame}`, by which images come to the size that the model takes. "
            f"The commands of samparser know\nit from this folder; in Python the processor for it comes from "
            f'`load_sam(base, frame="{info.frame}")`.'
        )
    return f"""\
## How to use it

```bash
pip install samparser
```

```python
import samparser  # first: it tells PEFT about the method

from peft import PeftModel
{imports}{import_base}
model = {load_base}
model = PeftModel.from_pretrained(model, "path or Hub id of this adapter")
{own_mask}model = model.merge_and_unload()  # optional: the plain base model class with the adapted weights
```

The bases are computed from the base model's weights, so those have to be the ones it was trained on; loading checks
them.{why}{frame}"""


def _versions() -> str:
    names = {"PEFT": "peft", "transformers": "transformers", "torch": "torch"}
    lines = [f"- {shown} {version(package)}" for shown, package in names.items()]
    # PEFT looks for this heading and for its own line, and adds them where they are missing.
    return "\n".join(["### Framework versions", "", *lines[:1], f"- samparser {__version__}", *lines[1:]])
