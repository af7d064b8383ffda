"""One step of training: what it does, and the state that it leaves.

A step is a function of the state before it and of its number: the same weights come out whether a
run was stopped in between or not, and, up to rounding, however many processes share the batch.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.compiled import can_compile
from model.noise import Stream
from model.process import Process
from model.unet import UNet, UNetConfig
from training import chance
from training.build import learning_rate
from training.config import Config, ConfigError
from training.data import Dataset
from training.ema import Ema
from training.lanes import Lane, Lanes
from training.objective import (
    TIME_SAMPLING,
    WEIGHTINGS,
    LossHistory,
    drop_labels,
    eps_loss,
    stratified,
)
from training.parallel import World
from training.state import State

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step done: its number (from 1) and the learning rate it used.

    report: float32 ``(3,)`` on the device, which may not have computed it yet: the mean loss of the
    whole batch, the norm of its gradient before clipping, and the share of processes that were
    asked to stop.
    """

    number: int
    learning_rate: float
    report: Tensor


class Trainer:
    """Network, optimiser and averages of a run, and how they take a step.

    Raises `ConfigError` for what this machine or the number of processes cannot do.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        process: Process,
        architecture: UNetConfig,
        world: World,
    ) -> None:
        settings = config.train
        self._config, self._dataset, self._process, self._world = config, dataset, process, world
        self._rows = _share(config, world)
        self.done = 0
        torch.manual_seed(settings.seed)  # the initial weights, the same in every process
        self.network = UNet(architecture).train().to(world.device)
        channels_last = settings.channels_last
        if channels_last is None:
            channels_last = world.device.type == "cuda"
        if channels_last:
            _lay_channels_last(self.network)
        self._lanes = Lanes(
            self.network,
            self._rows,
            dataset.spec.shape,
            world.device,
            alone=world.size > 1 or settings.compile,
            channels_last=channels_last,
        )
        self.ema = Ema(self.network, config.ema.decays)
        self._prepared = _prepared(self.network, config, world)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        fp16 = settings.precision == "fp16"
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)
        # It makes its tensors when it first scales, which lanes would do at once.
        self._scaler.scale(torch.zeros((), device=world.device))
        self._history = LossHistory() if config.objective.by_loss_history else None
        self._order = chance.Order(settings.seed, len(dataset.train), settings.batch_size)

    def advance(self, *, stop: bool = False) -> Step:
        """Take one step; stop: this process was asked to end, which all hear of in the report."""
        settings = self._config.train
        rate = learning_rate(self.done, self._config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._lanes.forget_gradients()
        done = []
        for part in range(settings.accumulate):
            first = (self._world.rank * settings.accumulate + part) * self._rows
            index = self._order.rows(self.done, first, self._rows)
            done += self._lanes.run(partial(self._backward, part, first, index))
        self._lanes.add_gradients()
        losses, quantiles, errors = zip(*done, strict=True)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.ema.update()
        self._remember(torch.cat(quantiles), torch.cat(errors))
        self.done += 1
        asked = torch.full_like(norm, float(stop))
        report = self._world.mean(torch.stack((torch.stack(losses).sum(), norm, asked)))
        return Step(number=self.done, learning_rate=rate, report=report)

    def files(self, step: int) -> list[str]:
        """The images of a step's whole batch, steps counted from 1."""
        rows = self._order.rows(step - 1, 0, self._config.train.batch_size)
        return [self._dataset.train.files[row] for row in rows.tolist()]

    def state(self) -> State:
        """All that the next step depends on, and copies of nothing."""
        document = {
            "ema_updates": self.ema.updates,
            "adamw_updates": self._updates(),
            "scaler": self._scaler.state_dict(),
            "loss_history": self._history.losses.tolist() if self._history else None,
        }
        return State(step=self.done, tensors=self.tensors(), document=document)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a state, by name."""
        weights = self.network.state_dict()
        return {
            **{f"weights.{name}": tensor for name, tensor in weights.items()},
            **{
                f"ema.{decay}.{name}": tensor
                for decay, averages in self.ema.weights.items()
                for name, tensor in averages.items()
            },
            **{
                f"adamw.{moment}.{name}": self._optimizer.state[weight].get(moment, weight.detach())
                for name, weight in self.network.named_parameters()
                for moment in _MOMENTS
            },
        }

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go on from a state that has the names and shapes of `tensors`."""
        found, document = state.tensors, state.document
        for name, tensor in self.network.state_dict().items():
            tensor.copy_(found[f"weights.{name}"])
        for decay, averages in self.ema.weights.items():
            for name, tensor in averages.items():
                tensor.copy_(found[f"ema.{decay}.{name}"])
        updates = torch.tensor(float(document["adamw_updates"]))
        moments = {
            index: {
                "step": updates.clone(),
                # In the weights' own layout: the fused kernel goes through memory, not indices.
                **{m: torch.empty_like(w).copy_(found[f"adamw.{m}.{name}"]) for m in _MOMENTS},
            }
            for index, (name, w) in enumerate(self.network.named_parameters())
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if document["scaler"]:  # empty of a run in another precision than fp16
            self._scaler.load_state_dict(document["scaler"])
        if self._history:
            self._history.restore(torch.tensor(document["loss_history"], dtype=torch.float64))
        self.ema.updates = document["ema_updates"]
        self.done = state.step

    def _backward(
        self, part: int, first: int, index: Tensor, lane: Lane
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradients of a lane's rows; their loss, and quantiles of times and errors, a row.

        first: the place in the whole batch of the part's first row; index: that of each row in the
        data. A process's losses add up to the mean over its share of the batch.
        """
        with self._gradients_of(part):
            own = index[lane.first : lane.first + lane.count]
            quantile, share, error = self._errors(first + lane.first, own, lane)
            loss = (error * share).sum() / (self._rows * self._config.train.accumulate)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), quantile, error.detach()

    def _errors(self, first: int, index: Tensor, lane: Lane) -> tuple[Tensor, Tensor, Tensor]:
        """Of a lane's rows: quantiles of the times, weights, errors, a row."""
        config, dataset, device = self._config, self._dataset, self._world.device
        seed, batch_size = config.train.seed, config.train.batch_size
        rows = chance.Rows(seed=seed, step=self.done, first=first, count=lane.count, device=device)
        levels = dataset.train.take(index).to(device, non_blocking=True)
        u = rows.uniform(Stream.DEQUANTIZATION, dataset.spec.shape)
        x0 = dataset.spec.to_model(levels.double(), u).float()
        if config.data.flip:
            mirrored = rows.uniform(Stream.FLIP) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        labels = drop_labels(
            dataset.train.labels[index].to(device, non_blocking=True),
            config.objective.label_dropout,
            rows.uniform(Stream.LABEL),
        )
        places = torch.arange(first, first + lane.count)
        quantile = stratified(places, batch_size, chance.shift(seed, self.done))
        share = torch.ones_like(quantile)
        if self._history is not None:
            quantile, share = self._history.draw(quantile)
        t = TIME_SAMPLING[config.objective.time_sampling](self._process, quantile)
        weight = WEIGHTINGS[config.objective.weighting](self._process, t).to(device)
        log_snr = self._process.log_snr(t).to(device)
        eps = rows.normal(Stream.EPS, dataset.spec.shape)
        lane.dropout.draw(rows)
        network = self._prepared if lane.network is self.network else lane.network
        precision = _PRECISIONS[config.train.precision]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            errors = eps_loss(network, x0, labels, log_snr, eps, config.model.prediction)
        return quantile, share.to(device), errors * weight

    def _remember(self, quantile: Tensor, errors: Tensor) -> None:
        if self._history is None:
            return
        every = self._world.gathered(torch.stack((quantile.to(errors.device), errors), dim=1))
        self._history.record(*every.cpu().unbind(1))

    def _gradients_of(self, part: int) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients in the last part of a step only."""
        last = part == self._config.train.accumulate - 1
        if isinstance(self._prepared, DistributedDataParallel) and not last:
            return self._prepared.no_sync()
        return contextlib.nullcontext()

    def _updates(self) -> int:
        """Steps that the optimiser took: with fp16 it leaves out those that overflowed."""
        moments = next(iter(self._optimizer.state.values()), {"step": 0.0})
        return int(moments["step"])


def _share(config: Config, world: World) -> int:
    """Rows of one part of a step in one process."""
    settings = config.train
    parts = world.size * settings.accumulate
    if settings.batch_size % parts:
        raise ConfigError(
            f"train.batch_size = {settings.batch_size} is no multiple of {parts}: {world.size} "
            f"processes times train.accumulate = {settings.accumulate}"
        )
    return settings.batch_size // parts


def _lay_channels_last(network: UNet) -> None:
    """The convolutions' weights, by which they choose how activations lie."""
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _prepared(network: UNet, config: Config, world: World) -> nn.Module:
    """The network as a step calls it: compiled where asked, and with the others' gradients."""
    call: nn.Module = network
    if config.train.compile:
        if not can_compile():
            raise ConfigError(
                "train.compile needs a C++ compiler: install g++, name one in CXX, or leave it out"
            )
        call = cast(nn.Module, torch.compile(network, dynamic=False))
    if world.size == 1:
        return call
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(call, devices, broadcast_buffers=False)
