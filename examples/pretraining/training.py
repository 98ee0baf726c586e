"""The training loop: phases of growing size, averaged weights, and a state that resumes to the bit."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import SamModel

from pretraining.evaluation import HeldOut, mean_iou
from pretraining.losses import mask_iou, total_loss
from pretraining.model import new_model, predict_tile
from pretraining.muon import Muon
from pretraining.recipe import Phase, Recipe
from pretraining.samples import Photo, Samples
from pretraining.scenes import Scene
from pretraining.state import load_state, save_state

LOG_EVERY = 50


class Trainer:
    """Trains one model by one recipe, in one folder, in as many processes as ``torchrun`` started.

    The folder gets ``log.jsonl``, a record every 50 steps, and ``state.safetensors``, from which :meth:`resume` goes
    on as if there had been no interruption. Each process takes its share of every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        scenes: list[Scene],
        photos: list[Photo],
        held_out: dict[str, list[HeldOut]],
        output: Path,
        *,
        device: str = "cpu",
        workers: int = 0,
    ) -> None:
        self.recipe, self.scenes, self.photos, self.held_out = recipe, scenes, photos, held_out
        self.output, self.device, self.workers = output, torch.device(device), workers
        self.model = new_model(recipe.architecture, recipe.seed).to(self.device).train()
        self.parameters = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.muon, self.adamw = optimizers(self.parameters, recipe)
        self.step = 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def train(self, *, until: int | None = None, evaluate_every: int = 500, save_every: int = 250) -> None:
        """Go on from the current step to ``until`` (the recipe's end), logging, scoring and saving on the way."""
        end = self.recipe.steps if until is None else min(until, self.recipe.steps)
        first, started, recent = self.step, time.monotonic(), []
        bar = tqdm(total=end, initial=first, desc="pre-training", unit="step", smoothing=0.05, disable=self.rank > 0)
        while self.step < end:
            phase = self.recipe.phase(self.step)
            for batch in self._batches(phase, self.step, min(end, phase.until)):
                recent.append(self._update(phase, {name: value.to(self.device) for name, value in batch.items()}))
                self.step += 1
                bar.update()
                if self.rank:
                    continue
                last = self.step == end
                if self.step % LOG_EVERY == 0 or last:
                    loss, iou = (round(float(value), 4) for value in np.mean(recent, 0))
                    recent.clear()
                    bar.set_postfix(loss=loss, iou=iou)
                    pace = (time.monotonic() - started) / (self.step - first)
                    record = {"step": self.step, "size": phase.size, "loss": loss, "train_iou": iou}
                    record |= {"learning_rate": self.recipe.rate(self.step - 1), "seconds_per_step": round(pace, 3)}
                    self._log(record | (self.scores() if self.step % evaluate_every == 0 or last else {}))
                if self.step % save_every == 0 or last:
                    self.save()
        bar.close()

    def scores(self) -> dict[str, float]:
        """Mean IoU of the averaged weights on each held-out set."""
        with self.averaged() as model:
            return {f"{name}_iou": round(mean_iou(model, pictures), 4) for name, pictures in self.held_out.items()}

    def _batches(self, phase: Phase, start: int, stop: int) -> DataLoader[dict[str, Tensor]]:
        """The batches of the steps from ``start`` to ``stop``, this process's share of each."""
        share, rest = divmod(phase.batch, self.processes)
        if rest:
            raise ValueError(f"A batch of {phase.batch} images cannot be shared evenly by {self.processes} processes.")
        samples = Samples(
            self.scenes,
            self.photos,
            phase.size,
            phase.objects,
            self.recipe.seed,
            zoom=phase.zoom,
            photo_zoom=phase.photo_zoom,
            photo_share=self.recipe.photo_share,
        )
        order = [step * phase.batch + self.rank * share + i for step in range(start, stop) for i in range(share)]
        return DataLoader(samples, share, sampler=order, num_workers=self.workers)

    def _update(self, phase: Phase, batch: dict[str, Tensor]) -> tuple[float, float]:
        """One step of both optimizers; the loss and the mean IoU of the batch before it."""
        rng = np.random.default_rng([self.recipe.seed, 1, self.step])
        room = (self.recipe.architecture.image_size - phase.size) // self.recipe.architecture.patch_size
        left, top = (int(value) for value in rng.integers(0, room + 1, 2))
        prompt = str(rng.choice(["box", "point", "point, three masks", "box, three masks"], p=[0.74, 0.08, 0.1, 0.08]))
        if self.step < self.recipe.box_only:
            prompt = "box"
        asked = {"points": batch["points"]} if prompt.startswith("point") else {"boxes": batch["boxes"]}
        logits, quality = predict_tile(
            self.model, batch["pixels"], left, top, multimask=prompt.endswith("three masks"), **asked
        )
        offset = self.recipe.logit_offset(self.step)
        loss = total_loss(logits, quality, batch["masks"], batch["boxes"], batch["weights"], phase.size, offset)
        rate = self.recipe.rate(self.step)
        for optimizer, factor in ((self.muon, self.recipe.muon), (self.adamw, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.muon.step()
        self.adamw.step()
        decay = self.recipe.average_decay(self.step)
        with torch.no_grad():
            for name, value in self.parameters.items():
                self.average[name].lerp_(value, 1 - decay)
        reached = mask_iou(logits, batch["masks"]).max(-1).values * batch["weights"]
        return float(loss.detach()), float(reached.sum() / batch["weights"].sum().clamp(min=1))

    def _share_gradients(self) -> None:
        """Average the gradients of all processes; a parameter that this step's prompt leaves out has none anywhere."""
        if self.processes == 1:
            return
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.processes
        for gradient, shared in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(shared.view_as(gradient))

    @contextmanager
    def averaged(self) -> Iterator[SamModel]:
        """The model with its averaged weights in place, for scoring and for export."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            self._put(self.average)
            yield self.model
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(values[name])

    def _log(self, record: dict[str, float]) -> None:
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def state_file(self) -> Path:
        return self.output / "state.safetensors"

    def save(self) -> None:
        """Write the state, whole or not at all."""
        save_state(self.state_file, self.step, self.parameters, self.average, (self.muon, self.adamw))

    def resume(self) -> None:
        """Go back to the saved state; the log loses what lies beyond it."""
        self.step = load_state(self.state_file, self.parameters, self.average, (self.muon, self.adamw))
        log = self.output / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        if self.rank == 0 and len(kept) < len(lines):
            shortened = log.with_suffix(".part")
            shortened.write_text("".join(line + "\n" for line in kept))
            os.replace(shortened, log)


def optimizers(parameters: dict[str, torch.nn.Parameter], recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices and kernels between features, AdamW for the rest; vectors do not decay."""
    inside = {
        name: value
        for name, value in parameters.items()
        if value.ndim in (2, 4) and min(value.shape[:2]) >= 16 and "embed" not in name
    }
    matrices = [value for name, value in parameters.items() if name not in inside and value.ndim > 1]
    vectors = [value for value in parameters.values() if value.ndim <= 1]
    muon = Muon(inside.values(), lr=0.0, weight_decay=recipe.weight_decay)
    adamw = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=(0.9, 0.98),
    )
    return muon, adamw
