"""Coverage of intervals over seeds and images: python -m bench.seeds

Draws worlds in which the right answer is known: images differ, seeds differ, and a seed may suit an image. In each it
draws seeds and images, and counts how often an interval with a nominal 95% holds the right answer: the interval of
pipeline/evaluation/seeds.py beside a bootstrap that draws seeds, then images.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bootstrap import Bootstrap, mean_iu, resample
from pipeline.evaluation.seeds import Estimate, group_difference, group_score
from pipeline.tables import Table, render

NUM_IMAGES, NUM_CLASSES, NUM_PIXELS = 60, 4, 2000


class World(NamedTuple):
    """Standard deviations of the logit of a pixel's chance to be right.

    seed: between seeds, for each class.
    image: between images, for each class, alike for all seeds.
    both: of a seed on an image.
    """

    seed: float
    image: float
    both: float


WORLDS = {
    "seeds differ most": World(0.3, 0.3, 0.1),
    "as much as images": World(0.1, 0.6, 0.2),
    "images differ most": World(0.02, 0.8, 0.2),
    "seeds suit images": World(0.05, 0.3, 0.8),
}


def draw_counts(
    world: World, random: np.random.Generator, num_seeds: int, num_images: int, num_groups: int = 1
) -> NDArray[np.int64]:
    """Return (groups, seeds, images, 3, C) counts: all groups are equally good, on the same images."""
    shape = (num_groups, num_seeds, num_images, NUM_CLASSES)
    logit = (
        1.2
        + world.seed * random.normal(size=(num_groups, num_seeds, 1, NUM_CLASSES))
        + world.image * random.normal(size=(1, 1, num_images, NUM_CLASSES))
        + world.both * random.normal(size=shape)
    )
    # Classes are in some images and not in others
    shares = random.dirichlet(np.full(NUM_CLASSES, 0.5), num_images)
    label = np.broadcast_to((shares * NUM_PIXELS).astype(np.int64), shape)
    right = (label / (1 + np.exp(-logit))).astype(np.int64)
    wrong = label - right
    predicted = right + np.roll(wrong, 1, -1)
    return np.stack((right, label, predicted), -2)


def true_score(world: World, random: np.random.Generator, num_draws: int = 20_000) -> float:
    """Return the mean of many seeds' scores, each on a split of its own."""
    scores = [mean_iu(draw_counts(world, random, 1, NUM_IMAGES)[0, 0].sum(0)) for _ in range(num_draws)]
    return float(np.mean(scores))


def naive_interval(groups: NDArray[np.int64], bootstrap: Bootstrap) -> tuple[float, float]:
    """Return the percentile interval of a bootstrap that draws seeds, then images.

    groups: (1 or 2, seeds, images, 3, C); the score of the first group, less that of the second.
    """
    random = np.random.default_rng(bootstrap.seed)
    num_groups, num_seeds, *_ = groups.shape
    scores = resample(mean_iu, np.moveaxis(groups, 2, 0), bootstrap)  # (resamples, groups, seeds)
    means = np.take_along_axis(scores, random.integers(0, num_seeds, scores.shape), 2).mean(2)
    values = means[:, 0] - (means[:, 1] if num_groups == 2 else 0)
    outside = (1 - bootstrap.level) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)


def estimate(groups: NDArray[np.int64], bootstrap: Bootstrap) -> Estimate:
    if len(groups) == 1:
        return group_score(mean_iu, list(groups[0]), bootstrap)
    return group_difference(mean_iu, list(groups[0]), list(groups[1]), bootstrap, is_paired=False)


def coverage(
    world: World, truth: float, num_groups: int, num_seeds: int, num_draws: int, num_resamples: int
) -> tuple[float, float, float]:
    """Return the share of draws whose interval holds the truth, for both methods, and the ratio of their widths."""
    random = np.random.default_rng(num_seeds)
    hits, naive_hits, widths = [], [], []
    for number in range(num_draws):
        groups = draw_counts(world, random, num_seeds, NUM_IMAGES, num_groups)
        settings = Bootstrap(num_resamples, 0.95, number)
        found, (low, high) = estimate(groups, settings), naive_interval(groups, settings)
        hits.append(found.low <= truth <= found.high)
        naive_hits.append(low <= truth <= high)
        widths.append((found.high - found.low) / (high - low))
    return float(np.mean(hits)), float(np.mean(naive_hits)), float(np.median(widths))


def rows(num_draws: int, num_resamples: int) -> Iterator[tuple[object, ...]]:
    for name, world in WORLDS.items():
        score = true_score(world, np.random.default_rng(0))
        for what, num_groups, truth in (("a mean", 1, score), ("a difference", 2, 0.0)):
            for num_seeds in (2, 3, 5, 10):
                hits, naive_hits, width = coverage(
                    world, truth, num_groups, num_seeds, num_draws, num_resamples
                )
                yield name, what, num_seeds, f"{hits:.1%}", f"{naive_hits:.1%}", f"{width:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=300)
    arguments = parser.parse_args()
    head = ("world", "interval of", "seeds", "covers", "bootstrap of seeds covers", "width ratio")
    found = []
    for row in rows(arguments.draws, arguments.resamples):
        found.append(row)
        print(*row, sep="\t", flush=True)
    print(render([Table(head, found)], "markdown"))


if __name__ == "__main__":
    main()
