import math

import pytest
import torch

from model.noise import Stream, image_seeds, normal, philox, rademacher, uniform

# Known answers of Random123's own test suite (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_random123_s_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    found = philox(torch.tensor(counter), torch.tensor(key))
    assert tuple(found.tolist()) == words


def test_a_row_s_noise_does_not_depend_on_its_neighbours() -> None:
    seeds = torch.tensor([5, 6, 7])
    together = normal(seeds, Stream.STEP, 9, (1, 3, 3))
    alone = normal(seeds[1:2], Stream.STEP, 9, (1, 3, 3))
    assert torch.equal(together[1:2], alone)


def test_calls_given_a_row_equal_calls_given_one_by_one() -> None:
    seeds = torch.tensor([5, 5])
    together = normal(seeds, Stream.STEP, torch.tensor([3, 4]), (7,))
    for row, call in enumerate((3, 4)):
        assert torch.equal(together[row], normal(seeds[:1], Stream.STEP, call, (7,))[0])


def test_normal_values_have_the_moments_of_a_standard_normal() -> None:
    n = 400_000
    z = normal(torch.arange(100), Stream.STEP, 0, (n // 100,)).flatten()
    # Standard errors: mean 1/√n, variance √(2/n), third moment √(15/n), fourth √(96/n).
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs(float(z.pow(power).mean()) - expected)
        assert error < 4 * math.sqrt(variance / n)


@pytest.mark.parametrize("other", ["seed", "stream", "call"])
def test_other_keys_give_uncorrelated_noise(other: str) -> None:
    n = 100_000
    base = normal(torch.tensor([1]), Stream.STEP, 0, (n,))
    changed = {
        "seed": normal(torch.tensor([2]), Stream.STEP, 0, (n,)),
        "stream": normal(torch.tensor([1]), Stream.PRIOR, 0, (n,)),
        "call": normal(torch.tensor([1]), Stream.STEP, 1, (n,)),
    }[other]
    assert abs(float((base * changed).mean())) < 4 / math.sqrt(n)


def test_uniform_values_stay_inside_the_open_interval() -> None:
    u = uniform(torch.arange(64), Stream.DEQUANTIZATION, 0, (1000,))
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * u.numel())


def test_rademacher_values_are_signs_in_equal_parts() -> None:
    signs = rademacher(torch.arange(64), Stream.PROBE, 0, (8, 125))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / math.sqrt(signs.numel())


def test_image_seeds_are_distinct_and_fit_a_json_number() -> None:
    seeds = image_seeds(7, 1000)
    assert len(set(seeds)) == 1000
    assert max(seeds) < 2**53
    assert image_seeds(7, 3) == seeds[:3]
    assert not set(seeds) & set(image_seeds(8, 1000))
