"""A cache of what enters the first tuned module: train on it, and the frozen image encoder runs once per image.

cache = FeatureCache("features", model, processor)
cache.fill(samples)                                     # encodes what is not there yet; may be stopped and repeated
dataset = PromptedDataset(samples, cache.processor)     # reads features instead of preprocessing images
with cache.feeding():                                   # the frozen encoder leaves memory
    for batch in DataLoader(dataset, collate_fn=collate):
        model(pixel_values=batch["pixel_values"], input_boxes=batch["input_boxes"])
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from samparser._files import no_folder, write_text
from samparser._untrusted import read_json
from samparser._words import count
from samparser.sam.changes import changes_before_neck, changes_in_neck
from samparser.sam.families import Features, family_of
from samparser.sam.families.base import config_of
from samparser.sam.lean import lean_decoder
from samparser.sam.loading import check_processor
from samparser.sam.modes import evaluating
from samparser.sam.wrapped import image_processor, plain_model

from .filling import Filling, pixels_of
from .from_features import taking_features
from .keys import image_key, named_tensors, upstream_fingerprint
from .offload import EncoderAside
from .precision import DTYPES
from .processor import FeatureProcessor
from .store import DamagedFeaturesError, FeatureStore, MissingFeaturesError

if TYPE_CHECKING:
    from samparser.data import Sample

Form = Literal["tokens", "projection", "embedding"]
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_AUTOCAST = (torch.bfloat16, torch.float16)
_COMPARED = 3  # images encoded without autocast too
_GB = 1e9


class FeatureCache:
    """Features of images on disk, for a SAM of which nothing before the neck is trained.

    `form` is what is stored for an image; sizes are those of SAM's ViT-B, whose encoder has h * w = 64 * 64 patches:

    - "tokens": what enters the neck, one tensor or more, see `Family.encode`; (h, w, C), 6.3 MB in float16.
    - "projection": (h, w, r), the first of these times `projection` (r, C), where the neck's first layer goes on from
      there, in families with a `pointwise_first`. With conv1's frozen basis `Vh` a third of the bytes.
    - "embedding": (c, h, w), the image embedding; chosen where nothing in the neck is trained or adapted and the
      family has an `embedding_shape`. Elsewhere a part of the decoder has worked on it.

    Features depend on the image, the weights before that place, the preprocessing and the input size. All of these are
    hashed into an entry's name and checked when it is read, so a folder may serve many models, and features of another
    model or of an image that has changed are never used. They are computed in eval mode in the model's own dtype, one
    image at a time. In float32 training from the cache computes what training from images does; float16 rounds each
    value to 11 bits, and an entry with a value above 65504 is kept in float32; int8 rounds to 1/127 of the largest size
    in the same channel of the same image.

    Args:
        folder: Where features go; made when needed.
        model: A model of a SAM family, or a PeftModel around one.
        processor: Its processor.
        dtype: torch.float16, torch.float32 for twice the bytes, or torch.int8 for half of them.
        projection: See `form`; the caller sees to it that the neck's first layer takes the result.
        limit_gb: Refuse to fill the cache beyond so many gigabytes (1e9 bytes) on disk.
        batch: Images that the encoder takes at a time. More than one may change a feature's last bits, so such entries
            in float32 are kept apart from exact ones.
        autocast: torch.bfloat16 or torch.float16, what the encoder computes in while the cache is filled, kept apart
            from exact entries. The error that this makes is measured on the first images and goes to `about.json`.
        shards: Put so many images in one file; None: each in its own. What is there is read either way.

    Raises:
        TypeError: The model is of no SAM family.
        ValueError: Something before the features is trained or adapted, or an argument is not possible.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        processor: Any,
        *,
        dtype: torch.dtype = torch.float16,
        projection: Tensor | None = None,
        limit_gb: float | None = None,
        batch: int = 1,
        autocast: torch.dtype | None = None,
        shards: int | None = None,
    ) -> None:
        family = family_of(model, "Caching features")
        if dtype not in _NAMES:
            raise ValueError(
                f"Features are stored as torch.float16, torch.float32 or torch.int8, not as {dtype}: bfloat16 takes "
                "the bytes of float16 and rounds eight times more coarsely."
            )
        if autocast is not None and autocast not in _AUTOCAST:
            raise ValueError(
                f"autocast is torch.bfloat16 or torch.float16, or None for the model's own; got {autocast}."
            )
        for name, value in (("batch", batch), ("shards", shards)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 image; got {value}.")
        if limit_gb is not None and not limit_gb > 0:
            raise ValueError(f"limit_gb must be more than 0 gigabytes; got {limit_gb}.")
        check_processor(model, processor)
        self._model, self._family, self._projection, self._limit = model, family, projection, limit_gb
        self._batch, self._autocast, self._shards = batch, autocast, shards
        self._errors: list[float] = []
        self._sam: Any = plain_model(model)
        self._images = image_processor(processor)
        self.form: Form = self._form()
        _refuse_changes_before_neck(model)
        parts = family.upstream(model)
        if self.form == "embedding":
            parts |= {family.neck_name: self._sam.get_submodule(family.neck_name)}
        config = config_of(model).vision_config.to_dict()
        inexact = {} if autocast is None else {"autocast": str(autocast)}
        if batch > 1 and dtype == torch.float32:
            inexact["batch"] = "several images"
        tensors = named_tensors(parts).items()
        fingerprint = upstream_fingerprint(tensors, config, self._images, self.form, projection, inexact)
        self.folder = Path(folder)
        name = f"{fingerprint[:16]}-{self.form}-{_NAMES[dtype]}"
        self.store = FeatureStore(self.folder / name, fingerprint, self._shapes(), dtype)
        self._aside: EncoderAside | None = None

    @property
    def processor(self) -> FeatureProcessor:
        """What takes the place of the model's processor: it gives stored features as `pixel_values`."""
        return FeatureProcessor(self._images, self.store)

    def encode(self, image: np.ndarray) -> Features:
        """Compute the features of an image, uint8 RGB (H, W, 3), on the model's device, without the cache.

        Returns:
            One tensor or more, without a batch axis.

        Raises:
            RuntimeError: The encoder is put away, inside `feeding`.
        """
        return self.encode_pixels(pixels_of(image, self._images)[None])[0]

    def encode_pixels(self, pixels: Tensor) -> list[Features]:
        """Compute the features of each image of a batch that the processor made, (B, 3, S, S), without the cache.

        Raises:
            RuntimeError: The encoder is put away, inside `feeding`.
        """
        if self._aside is not None:
            raise RuntimeError("The image encoder is put away inside `feeding`; leave the block to encode images.")
        return self._encoded(pixels, self._autocast)

    def _encoded(self, pixels: Tensor, autocast: torch.dtype | None) -> list[Features]:
        weight = next(self._sam.parameters())
        with evaluating(self._model), torch.autocast(weight.device.type, autocast, enabled=autocast is not None):
            pixels = pixels.to(weight.device, weight.dtype, non_blocking=True)
            features = self._family.encode(self._model, pixels)
            if self.form == "embedding":
                features = (self._family.embed(self._model, features)["image_embeddings"],)
        return [self._projected(tuple(tensor[image] for tensor in features)) for image in range(len(pixels))]

    def _projected(self, features: Features) -> Features:
        if self._projection is None:
            return features
        first, *others = features
        # In the projection's own width: rounding comes once, when the result is stored.
        return first.to(self._projection.dtype) @ self._projection.T.to(first.device), *others

    def features(self, image: np.ndarray) -> Features:
        """Return the features of an image as stored; computed and stored first if they are not there or damaged."""
        key = image_key(image)
        try:
            return self.store.read(key)
        except MissingFeaturesError:
            pass
        except DamagedFeaturesError as error:
            warnings.warn(f"{str(error).partition(' Fill the cache')[0]} It is computed anew now.", stacklevel=2)
        return self.store.write(key, self.encode(image))

    def need(self, images: int) -> str:
        """Say what so many images take on disk, what is there already and what is free.

        Raises:
            ValueError: That is more than `limit_gb`, or does not fit on the disk; or there can be no such folder.
        """
        if reason := no_folder(self.folder):
            raise ValueError(f"{reason}; name another folder for the feature cache.")
        entries, used = self.store.size()
        most = images * self.store.entry_bytes + self._aside_bytes()
        free = shutil.disk_usage(_existing(self.folder)).free
        text = (
            f"Feature cache {self.store.folder}: {count(images, 'image')} of {self.store.entry_bytes / 1e6:.1f} MB, "
            f"with the encoder's weights {most / _GB:.2f} GB at most; {count(entries, 'image')} "
            f"({used / _GB:.2f} GB) there, {free / _GB:.1f} GB are free."
        )
        ways_out = (
            "Cache fewer images, store conv1's projection or fewer bytes a value (float16, int8), use another folder, "
            "or train without a cache."
        )
        if self._limit is not None and most > self._limit * _GB:
            raise ValueError(f"{text} The limit is {self._limit:g} GB. Raise it, or: {ways_out}")
        if most - used > free:
            raise ValueError(f"{text} That does not fit. {ways_out}")
        return text

    def fill(
        self,
        samples: Sequence[Sample],
        *,
        process: tuple[int, int] = (0, 1),
        workers: int = 0,
        context: str | None = None,
        progress: bool = True,
    ) -> int:
        """Store the features of every sample that is not in the cache yet, and computes damaged ones anew.

        May be stopped at any time and called again. Several processes may fill one folder, on several machines too:
        each claims some images at a time and waits in the end for those of the others.

        Args:
            samples: Anything with a length whose items have an `image`.
            process: `(rank, world size)`; each process takes every world-size-th image.
            workers: Processes that read and resize images while others are encoded.
            context: How they are started, as for a DataLoader: "fork", "spawn", "forkserver".
            progress: Print the disk need (rank 0) and show a progress bar.

        Returns:
            How many images this process encoded.

        Raises:
            ValueError: The images do not fit below the limit or on the disk.
        """
        from tqdm.auto import tqdm

        text = self.need(len(samples))
        self.store.remove_abandoned()
        self._errors = []
        self._write_description()
        filling = Filling(
            self.store,
            samples,
            self._images,
            self._encoded_and_compared,
            batch=self._batch,
            shards=self._shards,
            workers=workers,
            context=context,
            pinned=next(self._sam.parameters()).device.type == "cuda",
        )
        rank, world = process
        shown = progress and rank == 0
        if shown:
            print(text)
        start, total = time.perf_counter(), len(range(rank, len(samples), world))
        with tqdm(
            total=total, desc="encoding", unit="image", leave=False, dynamic_ncols=True, disable=not shown
        ) as bar:
            filling.run(process, bar.update)
        if shown and filling.encoded:
            share = filling.waited / (time.perf_counter() - start)
            print(f"Encoded {count(filling.encoded, 'image')}; {share:.0%} of the time went by waiting for images.")
        if self._errors:
            self._write_description()
            if shown:
                print(
                    f"Under autocast to {self._autocast} features differ from those without by "
                    f"{100 * max(self._errors):.2g} % of their size (root mean square, the worst of "
                    f"{count(len(self._errors), 'image')})."
                )
        return filling.encoded

    def _encoded_and_compared(self, pixels: Tensor) -> list[Features]:
        """Return the features of a batch, and compare those of the first images with what autocast leaves out."""
        encoded = self.encode_pixels(pixels)
        if self._autocast is not None and len(self._errors) < _COMPARED:
            (exact,) = self._encoded(pixels[:1], None)
            self._errors.append(_difference(encoded[0], exact))
        return encoded

    @contextmanager
    def feeding(self) -> Iterator[FeatureProcessor]:
        """Let the model take features as `pixel_values` inside the block, without its frozen encoder in memory.

        The encoder's weights wait in a file beside the features, and are back, bit for bit, when the block ends. The
        mask decoder works as in `samparser.sam.lean_decoder`.
        """
        if self._aside is not None:
            raise RuntimeError("This cache already feeds its model.")
        self.store.folder.mkdir(parents=True, exist_ok=True)
        weights = self.store.folder / "encoder.safetensors"
        upstream = self._family.upstream(self._model)
        dtype = next(iter(named_tensors(upstream).values())).dtype
        after_neck = self.form == "embedding"
        self._aside = EncoderAside(self._sam, upstream, weights)
        try:
            shapes = self.store.shapes
            with (
                taking_features(self._sam, self._family, shapes, dtype, after_neck=after_neck),
                lean_decoder(self._sam),
            ):
                yield self.processor
        finally:
            self._aside.restore()
            self._aside = None

    def _form(self) -> Form:
        if self._projection is None:
            kept = self._family.embedding_shape(self._sam.config) is not None and not changes_in_neck(self._model)
            return "embedding" if kept else "tokens"
        if self._family.pointwise_first is None:
            raise ValueError(
                f"A projection stands for the first layer of the neck, and the neck of a {self._family.model_class} "
                "does not begin with one 1x1 convolution. Leave the projection out."
            )
        return "projection"

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        entering = self._family.feature_shapes(self._sam.config)
        embedding = self._family.embedding_shape(self._sam.config)
        if self.form == "embedding" and embedding is not None:
            return (embedding,)
        if self._projection is None:
            return tuple(entering)
        *places, channels = entering[0]
        if self._projection.ndim != 2 or self._projection.shape[1] != channels:
            raise ValueError(
                f"The projection must be a matrix (rank, {channels}) for tokens of {channels} channels; got "
                f"{tuple(self._projection.shape)}."
            )
        return ((*places, self._projection.shape[0]), *entering[1:])

    def _aside_bytes(self) -> int:
        upstream = named_tensors(self._family.upstream(self._model))
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in upstream.values())

    def _write_description(self) -> None:
        from transformers import __version__ as transformers_version

        file = self.store.folder / "about.json"
        computed: dict[str, Any] = {"batch": self._batch, "autocast": None}
        if self._autocast is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                computed["relative_errors"] = read_json(file)["computed"]["relative_errors"]
            computed |= {"autocast": str(self._autocast)} | ({"relative_errors": self._errors} if self._errors else {})
        about = {
            "fingerprint": self.store.fingerprint,
            "form": self.form,
            "shapes": self.store.shapes,
            "dtype": str(self.store.dtype),
            "computed": computed,
            "model": getattr(self._sam.config, "name_or_path", ""),
            "preprocessing": self._images.to_dict(),
            "torch": torch.__version__,
            "transformers": transformers_version,
        }
        write_text(file, json.dumps(about, indent=2, default=str))


def _refuse_changes_before_neck(model: nn.Module) -> None:
    changes = changes_before_neck(model)
    if changes:
        what, names = ("trains", changes.trained) if changes.trained else ("has adapters on", changes.adapted)
        raise ValueError(
            f"Features cannot be cached: this model {what} {count(len(names), 'part')} of the image encoder before its "
            f"neck, first {names[0]}, so the features change in every step. A cache serves methods that tune the neck "
            "and what follows it, such as samparser or decoder; train this one without a cache."
        )


def _difference(ours: Features, exact: Features) -> float:
    """Return the root mean square of the differences over that of the exact features; of several, the largest."""
    return max(
        float((one.float() - other.float()).norm() / other.float().norm())
        for one, other in zip(ours, exact, strict=True)
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
