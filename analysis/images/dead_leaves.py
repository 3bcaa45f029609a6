"""Dead-leaves images: generated ones that share scale invariance and occlusion edges with natural images."""

import numpy as np
from numpy.typing import NDArray


def dead_leaves(size: tuple[int, int], *, seed: int, index: int) -> NDArray[np.float32]:
    """A dead-leaves image: opaque discs of random grey-tinted colour that occlude each other until all is covered.

    Radii follow the density r**-3, which gives the scale invariance (and the occlusion edges) of natural images.

    Args:
        size: Height and width in pixels.
        seed: Of the set.
        index: Of the image in its set; any two pairs (seed, index) are independent.

    Returns:
        Shape (3, H, W), float32, in [0, 1].

    References:
        Lee, Mumford and Huang 2001, "Occlusion Models for Natural Images", IJCV 41.
    """
    generator = np.random.default_rng((seed, index))
    height, width = size
    smallest, largest = 2.0, max(height, width) / 3
    image = np.zeros((3, height, width), np.float32)
    free = np.ones(size, bool)  # painted from the front: what is covered stays covered
    num_free = height * width
    while num_free:
        # The inverse of the distribution function of r**-3 between the two radii.
        uniform = generator.random(512)
        radii = (smallest**-2 - uniform * (smallest**-2 - largest**-2)) ** -0.5
        centers = generator.uniform(-largest, (height + largest, width + largest), (512, 2))
        colors = np.clip(generator.uniform(0, 1, (512, 1)) + generator.normal(0, 0.08, (512, 3)), 0, 1)
        if num_free < 0.02 * height * width:  # close the last gaps with discs that hit them
            rows, columns = np.nonzero(free)
            chosen = generator.integers(0, len(rows), 512)
            centers = np.stack([rows[chosen], columns[chosen]], 1).astype(float)
        for radius, (y, x), color in zip(radii, centers, colors, strict=True):
            top, bottom = max(int(y - radius), 0), min(int(y + radius) + 2, height)
            left, right = max(int(x - radius), 0), min(int(x + radius) + 2, width)
            if top >= bottom or left >= right:
                continue
            rows, columns = np.ogrid[top:bottom, left:right]
            visible = ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2) & free[top:bottom, left:right]
            count = int(visible.sum())
            if count:
                image[:, top:bottom, left:right][:, visible] = color[:, None]
                free[top:bottom, left:right] &= ~visible
                num_free -= count
    return image
