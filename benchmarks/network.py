"""Rows a second of our U-Net over diffusers' `UNet2DModel`, the same weights in both.

    GOMP_SPINCOUNT=10000 python -m benchmarks.network [--compile] [--large] [--threads N]

The base is diffusers in eager float32. The peer's weights are loaded into ours, so both compute
the same function; the run fails where outputs differ by more than 1e-5, or parameters or FLOPs by
more than 2 %. All candidates take turns call by call, so that whatever else the machine does
meets them alike; a round's ratio is of the medians in it. With --threads 1 the clock is the CPU
time of that thread, which other processes disturb least; else it is the wall clock.

--large: 36 M parameters at 32×32, 8 rows, instead of the digits network at 8×8, 64 rows.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import model
from model import checkpoint
from model.cores import PIECE, SharedAmongCores
from model.follow import replay
from model.grids import uniform
from model.inference import prepare
from model.likelihood import Hutchinson, dequantize, log_likelihood
from model.pf_ode import Adaptive
from model.plan import from_prior
from model.query import Condition, run
from model.samplers import SAMPLERS
from model.unet import UNet, UNetConfig
from training.data import digits

ROUNDS, PROBES, PRODUCT_ROWS = 5, 8, 16
SAMPLES, SAMPLE_STEPS = 256, 250
SHIPPED = Path(model.__file__).parent / "zoo" / "digits.safetensors"
LARGE = UNetConfig(
    in_channels=3, channels=(128, 256, 256, 256), attention=(1,), groups=32, head_channels=64
)  # Ho et al. 2020's for CIFAR-10, but with heads of 64 channels

Call = Callable[[], object]


def peer(config: UNetConfig) -> nn.Module:
    """diffusers' network of the same widths, depths and options."""
    levels = range(len(config.channels))
    kinds = ["Attn" if level in config.attention else "" for level in levels]
    network: nn.Module = UNet2DModel(  # type: ignore[no-untyped-call, assignment]
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        block_out_channels=config.channels,
        layers_per_block=config.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        attention_head_dim=config.head_channels,
        norm_num_groups=config.groups,
        norm_eps=1e-5,
        num_class_embeds=config.classes + 1 if config.classes else None,
    )
    return network.eval()


def names(config: UNetConfig) -> dict[str, str]:
    """Our module → the peer's, for all but what ours joins: qkv and the levels' projections."""
    found = {
        "embed.0": "time_embedding.linear_1",
        "embed.2": "time_embedding.linear_2",
        "stem": "conv_in",
        "norm": "conv_norm_out",
        "head": "conv_out",
        **_attention("middle_attention", "mid_block.attentions.0"),
    }
    if config.classes:
        found["classes"] = "class_embedding"
    for ours, theirs in _residuals(config).items():
        found |= {f"{ours}.{part}": f"{theirs}.{part}" for part in RESIDUAL}
        found[f"{ours}.shortcut"] = f"{theirs}.conv_shortcut"
        if ours.endswith(".residual"):
            found |= _attention(
                ours.replace("residual", "attention"), theirs.replace("resnets", "attentions")
            )
    for step in range(len(config.channels) - 1):
        found[f"downsample.{step}"] = f"down_blocks.{step}.downsamplers.0.conv"
        found[f"upsample.{step}"] = f"up_blocks.{step}.upsamplers.0.conv"
    return found


RESIDUAL = ("norm1", "conv1", "norm2", "conv2")


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.norm": f"{theirs}.group_norm", f"{ours}.out": f"{theirs}.to_out.0"}


def _residuals(config: UNetConfig) -> dict[str, str]:
    """Residual blocks in the order of our joined projection: down, middle, up."""
    sides = {"down": config.blocks, "up": config.blocks + 1}
    blocks = {
        side: {
            f"{side}.{stage}.{block}.residual": f"{side}_blocks.{stage}.resnets.{block}"
            for stage in range(len(config.channels))
            for block in range(count)
        }
        for side, count in sides.items()
    }
    middle = {f"middle.{block}": f"mid_block.resnets.{block}" for block in (0, 1)}
    return blocks["down"] | middle | blocks["up"]


def adopt(theirs: nn.Module, config: UNetConfig) -> UNet:
    """Our network with the peer's weights; raises where a key or shape does not fit."""
    weights, ours = theirs.state_dict(), UNet(config)
    mapped = {}
    for kind in ("weight", "bias"):
        for mine, other in names(config).items():
            if f"{other}.{kind}" in weights:
                mapped[f"{mine}.{kind}"] = weights[f"{other}.{kind}"]
            triple = [f"{other.replace('to_out.0', f'to_{part}')}.{kind}" for part in "qkv"]
            if other.endswith("to_out.0") and triple[0] in weights:
                qkv = torch.cat([weights[name] for name in triple])
                mapped[f"{mine.removesuffix('out')}qkv.{kind}"] = qkv
        blocks = _residuals(config).values()
        projections = [weights[f"{block}.time_emb_proj.{kind}"] for block in blocks]
        mapped[f"levels.{kind}"] = torch.cat(projections)
    ours.load_state_dict(mapped)
    return ours.eval().requires_grad_(False)


def inputs(config: UNetConfig, rows: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, log-SNR and label of as many rows."""
    torch.manual_seed(1)
    u = torch.randn(rows, config.in_channels, side, side)
    label = torch.arange(rows) % max(config.classes, 1) if config.classes else torch.zeros(rows)
    return u, torch.linspace(-8.0, 8.0, rows), label.long()


def ask_peer(network: nn.Module, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
    """The peer's prediction at the timestep that our network embeds, 25 (20 − λ)."""
    labels = label if network.class_embedding is not None else None
    out: Tensor = network(u, 25.0 * (20.0 - log_snr), class_labels=labels).sample
    return out


def flops(call: Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def ratios(
    calls: dict[str, Call], repeats: int, clock: Callable[[], float]
) -> dict[str, list[tuple[float, float]]]:
    """Per candidate: seconds (median) and speed over the first candidate, one of each a round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                began = clock()
                call()
                seconds[name].append(clock() - began)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        base = next(iter(middle.values()))
        for name, value in middle.items():
            found[name].append((value, base / value))
    return found


def table(title: str, rows: int, found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n| {title} | ms a call | rows/s | times the first: median | range |")
    print("|---|---|---|---|---|")
    for name, pairs in found.items():
        seconds = statistics.median(value for value, _ in pairs)
        speed = sorted(ratio for _, ratio in pairs)
        print(
            f"| {name} | {1e3 * seconds:.1f} | {rows / seconds:.3g} "
            f"| {statistics.median(speed):.2f} | {speed[0]:.2f} … {speed[-1]:.2f} |",
            flush=True,
        )


def check_same(theirs: nn.Module, ours: UNet, asked: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Our plain output; raises where the two networks are not the same function."""
    expected = ask_peer(theirs, *asked)
    plain: Tensor = ours(*asked)
    off = float((expected - plain).abs().max())
    both: tuple[nn.Module, nn.Module] = (theirs, ours)
    parameters = [sum(w.numel() for w in network.parameters()) for network in both]
    work = [flops(lambda: ask_peer(theirs, *asked)), flops(lambda: ours(*asked))]
    print(f"parameters {parameters}, FLOPs {work}, largest difference {off:.1e}")
    if off > 1e-5 or any(abs(b / a - 1.0) > 0.02 for a, b in (parameters, work)):
        raise SystemExit("these are not the same network")
    return plain


def products(network: nn.Module, asked: tuple[Tensor, Tensor, Tensor]) -> Call:
    """A forward and `PROBES` vector–Jacobian products, as a likelihood asks for."""
    u, log_snr, label = asked
    probes = torch.randn(PROBES, *u.shape).sign()

    def call() -> list[Tensor]:
        with torch.enable_grad():
            x = u.clone().requires_grad_(True)
            out = network(x, log_snr, label)
            return [torch.autograd.grad(out, x, p, retain_graph=True)[0] for p in probes]

    return call


def half_precision(images: int) -> None:
    """What bf16 changes: ε of 64 held-out digits, bits/dim of some, and samples."""
    spec, process = _load().description.data, _load().description.process
    levels, seeds = digits(0.15).held_out.levels[:64], torch.arange(64)
    x, noise = spec.to_model(levels, dequantize(levels, seeds)), torch.randn(64, *spec.shape)
    exact, lowered = _load().denoiser(), _load().denoiser()
    prepare(lowered.network, dtype=torch.bfloat16)
    label = torch.full((64,), -1)
    print("\n| log-SNR | RMS of ε(bf16) − ε(fp32) | RMS of ε(fp32) − true noise |\n|---|---|---|")
    for level in (-8.0, -4.0, 0.0, 4.0, 8.0):
        log_snr = torch.full((64,), level)
        alpha, sigma = log_snr.sigmoid().sqrt()[0], (-log_snr).sigmoid().sqrt()[0]
        u = (alpha * x + sigma * noise).float()
        a, b = exact.network(u, log_snr, label), lowered.network(u, log_snr, label)
        rms = [float(d.square().mean().sqrt()) for d in (a - b, a - noise)]
        print(f"| {level:+.0f} | {rms[0]:.1e} | {rms[1]:.1e} |", flush=True)
    print(f"\n| {images} held-out digits, tolerance 1e-3, 8 probes | calls | bits/dim |")
    print("|---|---|---|")
    solver, divergence = Adaptive(tolerance=1e-3), Hutchinson(probes=PROBES)
    for name, denoiser in (("fp32", exact), ("bf16", lowered)):
        answer = run(
            log_likelihood(
                process, x[:images], Condition.same(images), solver, divergence, seeds[:images]
            ),
            denoiser,
        )
        bits, calls = spec.bits_per_dim(answer.log_likelihood), answer.nfe.double().mean()
        print(f"| {name} | {calls:.0f} | {float(bits.mean()):.4f} |", flush=True)
    print(
        f"\n| {SAMPLES} samples, bf16 against fp32 by the same seeds, of {spec.levels - 1} levels "
        "| RMS | 99 % of pixels within | largest |"
    )
    print("|---|---|---|---|")
    seeds = torch.arange(SAMPLES)
    for sampler in ("ddpm", "ddim"):
        plan = SAMPLERS[sampler](process, uniform(process, SAMPLE_STEPS))
        start = from_prior(plan, seeds, spec.shape)
        a, b = (
            spec.to_levels(run(replay(plan, start, seeds, Condition.same(SAMPLES)), denoiser).x)
            for denoiser in (exact, lowered)
        )
        off = (a - b).abs()
        print(
            f"| {sampler}, {SAMPLE_STEPS} steps | {float(off.square().mean().sqrt()):.3f} "
            f"| {float(off.quantile(0.99)):.2f} | {float(off.max()):.2f} |",
            flush=True,
        )


def _load() -> checkpoint.Checkpoint:
    return checkpoint.load(SHIPPED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--bits", type=int, metavar="IMAGES", help="the effect of bf16 alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.bits:
        half_precision(options.bits)
        return
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    shipped = _load().description.architecture
    assert isinstance(shipped, UNetConfig)
    config, side = (LARGE, 32) if options.large else (shipped, 8)
    torch.manual_seed(0)
    theirs = peer(config)
    plain = adopt(theirs, config)
    served = prepare(copy.deepcopy(plain))
    lowered = prepare(copy.deepcopy(plain), dtype=torch.bfloat16)
    shape = (config.in_channels, side, side)
    compiled = prepare(copy.deepcopy(plain), compile_for=shape) if options.compile else None
    kernels = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {options.threads} threads, {kernels}")
    for rows in options.rows or ([8] if options.large else [64]):
        asked = inputs(config, rows, side)
        with torch.no_grad():
            reference = check_same(theirs, plain, asked)
            networks: dict[str, nn.Module] = {"ours, plain": plain, "ours, prepared": served}
            if compiled is not None and options.threads == 1:  # compiled code is of one core
                networks["ours, compiled"] = compiled
            networks["ours, prepared, bf16"] = lowered
            if options.threads > 1:
                networks["ours, shared among cores"] = SharedAmongCores(served)
                if compiled is not None:
                    networks["ours, compiled, shared among cores"] = SharedAmongCores(
                        compiled, PIECE
                    )
                networks["ours, shared among cores, bf16"] = SharedAmongCores(lowered)
            for name, network in networks.items():
                off = float((network(*asked) - reference).abs().max())
                print(f"{name}: off the plain reference by {off:.1e}")
            calls: dict[str, Call] = {"diffusers, eager": lambda: ask_peer(theirs, *asked)}  # noqa: B023
            calls |= {name: lambda n=n: n(*asked) for name, n in networks.items()}  # type: ignore[misc]  # noqa: B023
            table(f"{side}×{side}, {rows} rows", rows, ratios(calls, options.repeats, clock))
    asked = inputs(config, PRODUCT_ROWS if not options.large else 2, side)
    with torch.no_grad():
        calls = {"one forward, prepared": lambda: served(*asked)}
    calls |= {"plain": products(plain, asked), "prepared": products(served, asked)}
    table(
        f"forward + {PROBES} products, {len(asked[0])} rows",
        len(asked[0]),
        ratios(calls, max(2, options.repeats // 4), clock),
    )


if __name__ == "__main__":
    main()
