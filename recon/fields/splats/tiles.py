"""Blend projected Gaussians front to back, tile by tile on the processor, and carry gradients back by hand.

The image is cut into tiles; each tile walks its Gaussians in order of depth (Kerbl et al. 2023) and, for each one, only over the
pixels where it reaches the least alpha that counts: on a row these form an interval that a quadratic equation gives, so the inner
loop has no branch but the one for pixels that are already opaque. Along a row the exponent is quadratic, so from one pixel to
the next the density changes by a factor that itself changes by a constant factor: two exponentials a row are enough.

Gradients use that the colour behind a Gaussian is the finished pixel less what lies in front of it: tiles are walked forwards a
second time and no transmittance has to be divided back. Every pair of tile and Gaussian has a row of its own for its gradients,
added up afterwards in a fixed order: the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

# TBB of the version that numba wants is seldom there, and its absence is warned of.
numba.config.THREADING_LAYER = "omp"

TILE_PX = 16
MIN_ALPHA = 1.0 / 255.0
"""A Gaussian that changes a pixel by less is left out there, as in gsplat."""
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4
"""A pixel through which less light comes is finished."""
_OPTIONS = {"fastmath": {"contract", "arcp", "nsz", "reassoc"}, "error_model": "numpy", "cache": True}


@numba.njit(**_OPTIONS)
def _reach(conic, opacity):
    """Half width and half height, px, of the box outside of which alpha is below MIN_ALPHA, and the exponent at its rim."""
    if opacity <= MIN_ALPHA:
        return 0.0, 0.0, -1.0
    rim = np.log(opacity / MIN_ALPHA)
    determinant = conic[0] * conic[2] - conic[1] * conic[1]
    return np.sqrt(2.0 * rim * conic[2] / determinant), np.sqrt(2.0 * rim * conic[0] / determinant), rim


@numba.njit(**_OPTIONS)
def _tile_box(mean, conic, opacity, width, height):
    """First and last tile, right and down, that a Gaussian touches; an empty range when none."""
    half_width, half_height, rim = _reach(conic, opacity)
    if rim < 0.0 or not np.isfinite(half_width + half_height + mean[0] + mean[1]):
        return 1, 0, 1, 0
    left, right = np.ceil(mean[0] - half_width), np.floor(mean[0] + half_width)
    top, bottom = np.ceil(mean[1] - half_height), np.floor(mean[1] + half_height)
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(right, width - 1.0), min(bottom, height - 1.0)
    if left > right or top > bottom:
        return 1, 0, 1, 0
    return int(left) // TILE_PX, int(right) // TILE_PX, int(top) // TILE_PX, int(bottom) // TILE_PX


@numba.njit(**_OPTIONS)
def bin_gaussians(order, means, conics, opacities, width, height):
    """Sort pairs of tile and Gaussian by tile, each tile's in `order` (indices, nearest first).

    Returns `first` (n + 1,), where each Gaussian's own pairs begin, `tile_first` (tiles + 1,), where each tile's list begins, and
    the list itself: the Gaussian and the pair of every entry. Gaussians that touch no tile have no pair.
    """
    num = len(means)
    across, down = -(-width // TILE_PX), -(-height // TILE_PX)
    boxes = np.empty((num, 4), np.int32)
    first = np.zeros(num + 1, np.int64)
    tile_first = np.zeros(across * down + 1, np.int64)
    for g in range(num):
        left, right, top, bottom = _tile_box(means[g], conics[g], opacities[g], width, height)
        boxes[g, 0], boxes[g, 1], boxes[g, 2], boxes[g, 3] = left, right, top, bottom
        first[g + 1] = first[g] + max(right - left + 1, 0) * max(bottom - top + 1, 0)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                tile_first[row * across + column + 1] += 1
    for tile in range(across * down):
        tile_first[tile + 1] += tile_first[tile]
    place = tile_first[:-1].copy()
    gaussian_of = np.empty(first[num], np.int32)
    pair_of = np.empty(first[num], np.int64)
    for k in range(num):
        g = order[k]
        pair = first[g]
        for row in range(boxes[g, 2], boxes[g, 3] + 1):
            for column in range(boxes[g, 0], boxes[g, 1] + 1):
                tile = row * across + column
                gaussian_of[place[tile]], pair_of[place[tile]] = g, pair
                place[tile] += 1
                pair += 1
    return first, tile_first, gaussian_of, pair_of


@numba.njit(inline="always", **_OPTIONS)
def _row_interval(dy, conic, rim, mean_x, low, high):
    """First and last pixel of a row, within low..high, where the exponent is at most `rim`; an empty range where none is."""
    a, b, c = conic[0], conic[1], conic[2]
    root = b * b * dy * dy - a * (c * dy * dy - 2.0 * rim)
    if root < 0.0:
        return 1, 0
    half = np.sqrt(root) / a
    middle = mean_x - b * dy / a
    return max(low, int(np.ceil(middle - half))), min(high, int(np.floor(middle + half)))


@numba.njit(inline="always", **_OPTIONS)
def _densities(first, last, mean_x, dy, conic, shrink, out):
    """exp(-exponent) of the pixels first..last of a row, by recurrence; `shrink` is exp(-a)."""
    a, b, c = conic[0], conic[1], conic[2]
    dx = first - mean_x
    value = np.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    factor = np.exp(-(a * (dx + 0.5) + b * dy))
    for k in range(last - first + 1):
        out[k] = value
        value *= factor
        factor *= shrink


@numba.njit(parallel=True, **_OPTIONS)
def blend(tile_first, gaussian_of, means, conics, opacities, features, width, height):
    """Blended features (h, w, c) without background, and the transmittance that is left (h, w)."""
    channels = features.shape[1]
    across = -(-width // TILE_PX)
    image = np.zeros((height, width, channels), np.float32)
    left_over = np.ones((height, width), np.float32)
    for tile in numba.prange(len(tile_first) - 1):
        x0, y0 = (tile % across) * TILE_PX, (tile // across) * TILE_PX
        x1, y1 = min(x0 + TILE_PX, width) - 1, min(y0 + TILE_PX, height) - 1
        total = np.zeros((TILE_PX, channels, TILE_PX), np.float32)
        light = np.ones((TILE_PX, TILE_PX), np.float32)
        density, weight = np.empty(TILE_PX, np.float32), np.empty(TILE_PX, np.float32)
        for entry in range(tile_first[tile], tile_first[tile + 1]):
            g = gaussian_of[entry]
            conic, mean_x, mean_y, opacity = conics[g], means[g, 0], means[g, 1], opacities[g]
            _, half_height, rim = _reach(conic, opacity)
            shrink = np.exp(-conic[0])
            for y in range(max(y0, int(np.ceil(mean_y - half_height))), min(y1, int(np.floor(mean_y + half_height))) + 1):
                dy = y - mean_y
                first, last = _row_interval(dy, conic, rim, mean_x, x0, x1)
                count = last - first + 1
                if count <= 0:
                    continue
                _densities(first, last, mean_x, dy, conic, shrink, density)
                row, start = light[y - y0], first - x0
                for k in range(count):
                    alpha = min(np.float32(MAX_ALPHA), opacity * density[k])
                    before = row[start + k]
                    after = before * (np.float32(1.0) - alpha)
                    is_through = after >= np.float32(MIN_TRANSMITTANCE)
                    weight[k] = alpha * before if is_through else np.float32(0.0)
                    # A finished pixel is marked by a sign, which no later Gaussian gets past.
                    row[start + k] = after if is_through else -abs(before)
                for channel in range(channels):
                    value = features[g, channel]
                    for k in range(count):
                        total[y - y0, channel, start + k] += weight[k] * value
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                left_over[y, x] = abs(light[y - y0, x - x0])
                for channel in range(channels):
                    image[y, x, channel] = total[y - y0, channel, x - x0]
    return image, left_over


@numba.njit(parallel=True, **_OPTIONS)
def blend_backward(
    tile_first, gaussian_of, pair_of, means, conics, opacities, features, image, left_over, image_gradient, left_over_gradient
):
    """Gradients of every pair of tile and Gaussian: columns mean (2), conic (3), opacity, features (c).

    Args:
        image, left_over: what `blend` returned.
        image_gradient, left_over_gradient: of the loss with respect to them.
    """
    height, width, channels = image.shape
    across = -(-width // TILE_PX)
    gradients = np.zeros((len(pair_of), 6 + channels), np.float32)
    for tile in numba.prange(len(tile_first) - 1):
        x0, y0 = (tile % across) * TILE_PX, (tile // across) * TILE_PX
        x1, y1 = min(x0 + TILE_PX, width) - 1, min(y0 + TILE_PX, height) - 1
        light = np.ones((TILE_PX, TILE_PX), np.float32)
        behind = np.zeros((TILE_PX, TILE_PX), np.float32)
        slope = np.zeros((TILE_PX, channels, TILE_PX), np.float32)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                # All that a Gaussian shades: the colours behind it, and the light that is left in the end.
                shaded = left_over_gradient[y, x] * left_over[y, x]
                for channel in range(channels):
                    slope[y - y0, channel, x - x0] = image_gradient[y, x, channel]
                    shaded += image[y, x, channel] * image_gradient[y, x, channel]
                behind[y - y0, x - x0] = shaded
        density, dot = np.empty(TILE_PX, np.float32), np.empty(TILE_PX, np.float32)
        weight = np.empty(TILE_PX, np.float32)
        for entry in range(tile_first[tile], tile_first[tile + 1]):
            g, pair = gaussian_of[entry], pair_of[entry]
            conic, mean_x, mean_y, opacity = conics[g], means[g, 0], means[g, 1], opacities[g]
            a, b, c = conic[0], conic[1], conic[2]
            _, half_height, rim = _reach(conic, opacity)
            shrink = np.exp(-a)
            for y in range(max(y0, int(np.ceil(mean_y - half_height))), min(y1, int(np.floor(mean_y + half_height))) + 1):
                dy = y - mean_y
                first, last = _row_interval(dy, conic, rim, mean_x, x0, x1)
                count = last - first + 1
                if count <= 0:
                    continue
                _densities(first, last, mean_x, dy, conic, shrink, density)
                row, start = y - y0, first - x0
                for k in range(count):
                    dot[k] = np.float32(0.0)
                for channel in range(channels):
                    value = features[g, channel]
                    for k in range(count):
                        dot[k] += value * slope[row, channel, start + k]
                sum0, sum1, sum2, by_opacity = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
                for k in range(count):
                    raw = opacity * density[k]
                    alpha = min(np.float32(MAX_ALPHA), raw)
                    before = light[row, start + k]
                    kept = np.float32(1.0) - alpha
                    after = before * kept
                    is_through = after >= np.float32(MIN_TRANSMITTANCE)
                    weight[k] = alpha * before if is_through else np.float32(0.0)
                    light[row, start + k] = after if is_through else -abs(before)
                    rest = behind[row, start + k] - weight[k] * dot[k]
                    behind[row, start + k] = rest
                    by_alpha = before * dot[k] - rest / kept if is_through and raw < np.float32(MAX_ALPHA) else np.float32(0.0)
                    by_opacity += by_alpha * density[k]
                    by_exponent = -by_alpha * raw
                    dx = np.float32(first + k - mean_x)
                    sum0 += by_exponent
                    sum1 += by_exponent * dx
                    sum2 += by_exponent * dx * dx
                gradients[pair, 0] -= a * sum1 + b * dy * sum0
                gradients[pair, 1] -= b * sum1 + c * dy * sum0
                gradients[pair, 2] += np.float32(0.5) * sum2
                gradients[pair, 3] += dy * sum1
                gradients[pair, 4] += np.float32(0.5) * dy * dy * sum0
                gradients[pair, 5] += by_opacity
                for channel in range(channels):
                    value = np.float32(0.0)
                    for k in range(count):
                        value += weight[k] * slope[row, channel, start + k]
                    gradients[pair, 6 + channel] += value
    return gradients


@numba.njit(parallel=True, **_OPTIONS)
def add_up(first, gradients):
    """Sum of each Gaussian's pairs (n, columns), in their order."""
    total = np.zeros((len(first) - 1, gradients.shape[1]), np.float32)
    for g in numba.prange(len(first) - 1):
        for pair in range(first[g], first[g + 1]):
            for column in range(gradients.shape[1]):
                total[g, column] += gradients[pair, column]
    return total
