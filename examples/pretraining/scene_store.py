"""Synthetic scenes made once, kept on disk and shared by all processes."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretraining.scenes import Scene, make_scene


def stored_scenes(
    folder: Path,
    seed: int,
    count: int,
    photos: Sequence[np.ndarray],
    cutouts: Sequence[np.ndarray] = (),
    processes: int = 1,
) -> list[Scene]:
    """Scenes 0 to ``count`` - 1 of the series ``seed``, from ``folder`` if they are there, else made now.

    The file's name carries a hash of what decides the scenes. Its pages are read when they are asked for and shared by
    all processes that map it: three thousand scenes are 1 GB.
    """
    path = scene_file(folder, seed, count, [*photos, *cutouts])
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = list(tqdm(_make(seed, count, photos, cutouts, processes), total=count, desc="scenes", unit="scene"))
        partial_path = path.with_suffix(".part.npy")
        np.save(partial_path, np.stack([np.dstack([scene.image, scene.labels]) for scene in made]))
        os.replace(partial_path, path)
    return [Scene(scene[..., :3], scene[..., 3]) for scene in np.load(path, mmap_mode="r")]


def scene_file(folder: Path, seed: int, count: int, pictures: Sequence[np.ndarray]) -> Path:
    """Where these scenes are kept: uint8 (count, side, side, 4), red, green, blue and the object's number."""
    digest = hashlib.sha256(json.dumps([seed, count]).encode())
    for picture in pictures:
        digest.update(picture.tobytes())
    return folder / f"scenes-{digest.hexdigest()[:12]}.npy"


def _make(
    seed: int, count: int, photos: Sequence[np.ndarray], cutouts: Sequence[np.ndarray], processes: int
) -> Iterator[Scene]:
    if processes == 1:
        yield from (make_scene(seed, number, photos, cutouts) for number in range(count))
        return
    with multiprocessing.get_context("spawn").Pool(processes, _keep, (list(photos), list(cutouts))) as pool:
        yield from pool.imap(partial(_make_one, seed), range(count), chunksize=16)


_kept: list[list[np.ndarray]] = []


def _keep(photos: list[np.ndarray], cutouts: list[np.ndarray]) -> None:
    _kept.extend([photos, cutouts])


def _make_one(seed: int, number: int) -> Scene:
    return make_scene(seed, number, *_kept)
