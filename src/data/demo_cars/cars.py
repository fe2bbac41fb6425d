"""Demo cars as 3-D models: body, wheels and fittings, built from the tables in designs.py.

A car is a list of parts; a part is a material and a grid of points, which becomes quads.
Lengths are in meters; x points forward, y to the car's left, z up from the floor.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.demo_cars.designs import MATERIALS, NOSE, SPOKES, TAIL, WHEEL, Body

# Material, and grid rows×columns×3. The cross product of its row and column steps points outside.
Part = tuple[str, np.ndarray]
Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (x or across, z) -> points


class Car(NamedTuple):
    """One car on the turntable."""

    quads: np.ndarray  # Q×4×3 float32
    materials: np.ndarray  # Q×5 float32, rows as in MATERIALS
    footprint: tuple[float, float, float, float]  # center x, center y, half length, half width
    exposure: np.ndarray  # float64 factors of blue, green, red
    seed: int  # of the spots on the floor and of the sensor noise


class Hull:
    """The painted surface of a body. Its methods return ...×3 points at heights `z`."""

    def __init__(self, body: Body):
        self.levels, self.exponent = np.array(body.levels), body.exponent
        for _ in range(4):  # Chaikin's corner cutting: smooth, never overshoots
            a, b = self.levels[:-1], self.levels[1:]
            cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, 4)
            self.levels = np.concatenate([a[:1], cut, b[-1:]])

    def section(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return half width, center x and half length at heights `z`."""
        half, front, rear = (np.interp(z, *self.levels[:, [0, k]].T) for k in (1, 2, 3))
        return half, (front + rear) / 2, (front - rear) / 2

    def superellipse(self, u: np.ndarray) -> np.ndarray:
        """Return the v ≥ 0 with |u|^n + v^n = 1 for coordinates `u`, clipped to [-1, 1]."""
        return (1 - np.clip(np.abs(u), 0, 1) ** self.exponent) ** (1 / self.exponent)

    def side(self, x: np.ndarray, z: np.ndarray, margin: float = 0.06) -> np.ndarray:
        """Return points on the left side; `x` is kept `margin` away from front and rear."""
        z = np.maximum(z, self.levels[0, 0])
        half, center, length = self.section(z)
        x = np.clip(x, center - length + margin, center + length - margin)
        return np.stack([x, half * self.superellipse((x - center) / length), z], -1)

    def end(self, across: np.ndarray, z: np.ndarray, direction: int) -> np.ndarray:
        """Return points on the front (direction 1) or rear (-1).

        `across` is y as a fraction of the half width, in [-1, 1].
        """
        half, center, length = self.section(z)
        x = center + direction * length * self.superellipse(across)
        return np.stack([x, across * half, z], -1)

    def surface_grid(self) -> np.ndarray:
        """Return the whole hull as one grid: rows upward, columns around, a few cm apart."""
        path = np.concatenate([[0], np.cumsum(np.abs(np.diff(self.levels, axis=0)).max(1))])
        z = np.interp(np.linspace(0, path[-1], int(path[-1] / 0.027)), path, self.levels[:, 0])
        half, center, length = (v[:, None] for v in self.section(z))
        angle = np.linspace(0, 2 * np.pi, 201)
        x, y = -np.cos(angle), np.sin(angle)
        radius = (np.abs(x) ** self.exponent + np.abs(y) ** self.exponent) ** (-1 / self.exponent)
        x, y, z = center + length * radius * x, half * radius * y, z[:, None]
        return np.stack(np.broadcast_arrays(x, y, z), -1)


# ---------------------------------------------------------------- grids


def mirror_pair(grid: np.ndarray) -> list[np.ndarray]:
    """Return the grid of a left-side part and its mirror image."""
    return [grid, grid[:, ::-1] * [1, -1, 1]]


def map_patch(
    surface: Surface, a: tuple, z: tuple, roundness: float = 0.0, columns: int = 24
) -> np.ndarray:
    """Map the rectangle a[0]..a[1] × z[0]..z[1] onto `surface`; roundness 1 gives an ellipse."""
    u, v = np.meshgrid(np.linspace(-1, 1, columns + 1), np.linspace(-1, 1, 15))
    bent_u, bent_v = u * np.sqrt(1 - roundness * v * v / 2), v * np.sqrt(1 - roundness * u * u / 2)
    return surface(np.interp(bent_u, [-1, 1], a), np.interp(bent_v, [-1, 1], z))


def ellipsoid(center: tuple, radii: tuple[float, float, float], lean: float = 0) -> np.ndarray:
    """Return the grid of an ellipsoid with the given radii, sheared backward by `lean`."""
    angle, rise = np.meshgrid(np.linspace(0, -2 * np.pi, 17), np.linspace(-1.5, 1.5, 25))
    sphere = [np.cos(rise) * np.cos(angle), np.cos(rise) * np.sin(angle), np.sin(rise)]
    points = np.stack(sphere, -1) * radii
    points[..., 0] -= lean * points[..., 2]
    return np.array(center) + points


def revolve(radius: np.ndarray, y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return points of a surface of revolution around the y axis; the arguments broadcast."""
    points = radius * np.cos(angle), y, -radius * np.sin(angle)
    return np.stack(np.broadcast_arrays(*points), -1)


# ---------------------------------------------------------------- parts


def wheel_parts(tire_radius: float, spokes: tuple[int, float, float, float]) -> list[Part]:
    """Build a left wheel centered at the origin, its face at y = 0, with gaps between spokes."""
    rim, (count, hub_width, rim_width, twin) = 0.7 * tire_radius, spokes
    parts = []
    for material, profile in WHEEL:
        radius, y = np.array(profile).T[..., None]
        parts.append((material, revolve(rim * radius, y, np.linspace(0, 2 * np.pi, 73))))
    along = np.linspace(0, 1, 9)[:, None]
    radius, dish = rim * (0.12 + 0.84 * along), -0.005 - 0.02 * np.sin(np.pi * along)
    width = (hub_width + (rim_width - hub_width) * along) / radius * np.linspace(-1, 1, 5)
    for angle in np.arange(count) * 2 * np.pi / count:
        for twist in sorted({-twin, twin}):
            parts.append(("alloy", revolve(radius, dish, angle + twist + width)))
    return parts


def side_parts(body: Body, hull: Hull, rail_material: str) -> list[Part]:
    """Build windows, doors, wheel arches, mirrors and roof rails of both sides."""

    def pane(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        return hull.side(x, z, 0.34)  # leaves room for the pillars of windshield and rear window

    (low, high), pillars = body.glass, body.pillars
    frame = (pillars[-1] - 0.03, pillars[0]), (low - 0.02, high + 0.02)
    left = [("gap", map_patch(pane, *frame, 0.1, 60))]
    for front, rear in pairwise(pillars):
        seat = max(rear + 0.16, (front + rear) / 2 - 0.25)
        seat = (seat, seat + 0.2), (low, 0.4 * low + 0.6 * high)
        handle = (rear + 0.08, rear + 0.26), (low - 0.15, low - 0.12)
        left.append(("glass", map_patch(pane, (rear + 0.03, front - 0.02), (low, high), 0.08)))
        left.append(("seat", map_patch(pane, *seat, 0.5)))
        left.append(("gap", map_patch(hull.side, (rear - 0.005, rear + 0.005), (0.34, low))))
        left.append(("shell", map_patch(hull.side, *handle, 1)))
    hub, arch = body.tire_radius, 1.13 * body.tire_radius
    for x in body.axles:  # a dark arch down to the sill; below it only the wheel is drawn
        left.append(
            ("gap", map_patch(hull.side, (x - arch, x + arch), (hub - arch, hub + arch), 1))
        )
    mirror = np.add(hull.side(pillars[0] - 0.55, low + 0.06, 0.5), (0, 0.11, 0))
    left.append(("shell", ellipsoid(mirror, (0.07, 0.12, 0.08))))
    if body.rail_radius:
        center = hull.side((pillars[1] + pillars[-1]) / 2, high + 0.1)
        length = 0.38 * (pillars[1] - pillars[-1])
        rail = ellipsoid(np.add(center, (0, -0.02, 0.02)), (length, 0.02, body.rail_radius))
        left.append((rail_material, rail))
    return [(material, side) for material, grid in left for side in mirror_pair(grid)]


def end_parts(body: Body, hull: Hull, direction: int) -> list[Part]:
    """Build the front (direction 1) or rear (-1): its window and the fittings of NOSE or TAIL."""

    def surface(across: np.ndarray, z: np.ndarray) -> np.ndarray:
        return hull.end(-direction * across, z, direction)

    (low, high), unit, fittings = body.glass, body.nose_height, NOSE
    if direction == -1:
        low, unit, fittings = max(low, body.tail_height + 0.1), body.tail_height, TAIL
    parts = [
        ("gap", map_patch(surface, (-0.94, 0.94), (low - 0.015, high + 0.02), 0.1, 40)),
        ("glass", map_patch(surface, (-0.9, 0.9), (low, high + 0.01), 0.1, 40)),
    ]
    seat = map_patch(surface, (0.2, 0.62), (low + 0.02, 0.4 * low + 0.6 * high), 0.6)
    parts += [("seat", side) for side in mirror_pair(seat)]
    for material, a0, a1, z0, z1, roundness in fittings:
        grid = map_patch(surface, (a0, a1), (z0 * unit, z1 * unit), roundness)
        parts += [(material, side) for side in (mirror_pair(grid) if a0 > 0 else [grid])]
    return parts


def antenna_part(hull: Hull, half_height: float) -> Part:
    """Build a thin antenna at the rear of the roof."""
    top, _, _, rear = hull.levels[-1]
    center = (rear - 0.5, 0, top - 0.06 + half_height)
    return "plastic", ellipsoid(center, (0.01, 0.01, half_height), 0.7)


# ---------------------------------------------------------------- the car


def build_car(rng: np.random.Generator, body: Body, paint: tuple[float, ...]) -> Car:
    """Build a car of one body type; size, wheels, position and exposure are drawn from `rng`.

    `paint` is a row of PAINTS.
    """
    hull, scale = Hull(body), rng.uniform(0.97, 1.03, 3)
    rail_material, antenna = ["plastic", "alloy"][rng.integers(2)], rng.uniform(-0.2, 0.25)
    parts = [("paint", hull.surface_grid()), *side_parts(body, hull, rail_material)]
    parts += end_parts(body, hull, 1) + end_parts(body, hull, -1)
    if antenna > 0:
        parts.append(antenna_part(hull, max(antenna, 0.1)))
    parts = [(material, grid * scale) for material, grid in parts]
    wheels = wheel_parts(body.tire_radius, SPOKES[rng.integers(len(SPOKES))])
    for x in body.axles:
        hub = hull.side(x, body.tire_radius) * scale + [0, 0.012, 0]
        hub[2] = body.tire_radius
        parts += [(material, side) for material, grid in wheels for side in mirror_pair(grid + hub)]

    quads, materials = to_quads(parts, body, paint)
    x, y = rng.uniform(-0.12, 0.12, 2)
    quads[..., :2] += x, y
    half, front, rear = hull.levels[:, 1].max(), hull.levels[:, 2].max(), hull.levels[:, 3].min()
    footprint = x + (front + rear) / 2, y, (front - rear) / 2, half
    exposure = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    seed = int(rng.integers(2**31))
    return Car(quads.astype(np.float32), materials.astype(np.float32), footprint, exposure, seed)


def to_quads(
    parts: list[Part], body: Body, paint: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the quads of all parts, Q×4×3, and their rows of MATERIALS, Q×5."""
    lookup = MATERIALS | {"paint": (*paint, 0.0), "shell": (*paint, 0.3)}
    quads, materials = [], []
    for material, grid in parts:
        corners = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        quads.append(np.stack(corners, 2).reshape(-1, 4, 3))
        materials.append(np.tile(lookup[material], (len(quads[-1]), 1)))
    below_cladding = quads[0][..., 2].mean(1) < body.cladding_height
    materials[0][below_cladding] = (*lookup["plastic"][:4], 0.0)
    return np.concatenate(quads), np.concatenate(materials)
