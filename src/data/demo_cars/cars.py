"""Cars as 3-D models: a body, wheels and fittings, from tables of numbers.

A car is a list of parts; a part is a material and a grid of points (metres: x forward, y to the
car's left, z up from the floor).  All parts become one heap of small quads.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Part = tuple[str, np.ndarray]  # grid (rows, columns, 3), its outside where rows x columns points

# fmt: off
MATERIALS = {  # linear light: blue, green, red; the share mirrored head on; raised by (metres):
    # a part laid on another must win over it although their quads' centres differ a little
    "tread": (0.012, 0.012, 0.012, 0.01, 0.0), "gap": (0.006, 0.006, 0.006, 0.0, 0.10),
    "plastic": (0.014, 0.014, 0.014, 0.03, 0.10), "glass": (0.016, 0.014, 0.012, 0.035, 0.16),
    "tail": (0.015, 0.01, 0.40, 0.04, 0.16), "plate": (0.80, 0.74, 0.66, 0.03, 0.16),
    "ink": (0.45, 0.16, 0.05, 0.02, 0.22), "lamp": (0.50, 0.50, 0.48, 0.25, 0.22),
    "seat": (0.004, 0.004, 0.004, 0.012, 0.22), "amber": (0.03, 0.22, 0.70, 0.08, 0.28),
    "chrome": (0.20, 0.20, 0.20, 0.55, 0.28), "steel": (0.06, 0.06, 0.06, 0.05, 0.28),
    "well": (0.012, 0.012, 0.012, 0.02, 0.28), "rubber": (0.012, 0.012, 0.012, 0.01, 0.30),
    "alloy": (0.40, 0.39, 0.38, 0.20, 0.34),
}
# Small things on the nose and the tail: across in shares of the half width there, heights in shares
# of Body.nose or Body.tail, roundness of the corners.  What lies beside the middle comes in pairs.
NOSE = [
    ("gap", -0.44, 0.44, 0.74, 0.93, 0.3), ("chrome", -0.40, 0.40, 0.825, 0.845, 0.0),
    ("plastic", -0.62, 0.62, 0.40, 0.58, 0.3), ("chrome", -0.07, 0.07, 0.78, 0.90, 1.0),
    ("plastic", 0.70, 0.90, 0.42, 0.58, 0.6), ("lamp", 0.74, 0.84, 0.44, 0.55, 1.0),
    ("plastic", 0.52, 0.955, 0.76, 0.96, 0.5), ("lamp", 0.54, 0.94, 0.78, 0.945, 0.5),
    ("chrome", 0.60, 0.70, 0.80, 0.92, 1.0), ("amber", 0.89, 0.935, 0.80, 0.92, 0.5),
    ("plate", -0.19, 0.19, 0.52, 0.67, 0.1), ("ink", -0.13, 0.13, 0.56, 0.63, 0.0),
]
TAIL = [
    ("gap", -0.98, 0.98, 0.555, 0.560, 0.0), ("plastic", -0.75, 0.75, 0.26, 0.38, 0.3),
    ("chrome", -0.34, 0.34, 0.865, 0.885, 0.0), ("tail", 0.62, 0.96, 0.74, 1.0, 0.4),
    ("lamp", 0.66, 0.80, 0.79, 0.85, 0.4), ("gap", -0.28, 0.28, 0.62, 0.84, 0.2),
    ("plate", -0.19, 0.19, 0.65, 0.80, 0.1), ("ink", -0.13, 0.13, 0.69, 0.76, 0.0),
]
WHEEL = [  # turned around the axle: radius (1: the rim), metres outwards
    ("rubber", [(1.0, -0.02), (1.05, 0), (1.36, 0), (1.42, -0.025)]),
    ("tread", [(1.42, -0.025), (1.43, -0.05), (1.43, -0.17), (1.36, -0.21), (1.0, -0.2)]),
    ("well", [(1.0, -0.19), (0.97, -0.1), (1.0, -0.02)]),
    ("steel", [(0.05, -0.1), (0.52, -0.1)]),
    ("alloy", [(0.93, -0.015), (0.97, 0.004), (1.03, 0)]),
    ("alloy", [(0, 0), (0.1, 0), (0.22, -0.02)]),
]
SPOKES = [  # how many, half their width at the hub and at the rim (metres), half angle of twins
    (5, 0.030, 0.040, 0.0), (5, 0.016, 0.018, 0.17), (6, 0.026, 0.030, 0.0),
    (7, 0.022, 0.026, 0.0), (7, 0.012, 0.012, 0.13), (10, 0.014, 0.017, 0.0),
]
# fmt: on


class Body(NamedTuple):
    """One type of body.  At every height it is a superellipse in plan, from rear to front."""

    levels: list[tuple[float, float, float, float]]  # height, half width, front x, rear x; upwards
    square: float  # the superellipse's exponent
    axles: tuple[float, float]  # x of the wheels
    tyre: float  # radius
    nose: float  # height of the bonnet's leading edge
    tail: float  # height of the rear lights' upper edge
    glass: tuple[float, float]  # lower and upper edge of the windows
    pillars: tuple[float, ...]  # x between the side windows, from the front
    rails: float  # radius of the roof rails, 0 for none
    cladding: float  # bare plastic below this height


class Car(NamedTuple):
    """One car on the turntable, ready to be photographed."""

    quads: np.ndarray  # (Q, 4, 3) float32 metres
    surface: np.ndarray  # (Q, 5) float32, rows of MATERIALS
    plan: tuple[float, float, float, float]  # of the shadow: x, y, half length, half width
    light: np.ndarray  # (3,) exposure of blue, green, red
    seed: int  # of the floor's spots and the sensor's noise


class Hull:
    """The painted surface of a body, asked for its points at heights z."""

    def __init__(self, body: Body):
        self.levels, self.square = np.array(body.levels), body.square
        for _ in range(4):  # cut the corners: a smooth curve which never overshoots
            a, b = self.levels[:-1], self.levels[1:]
            cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, 4)
            self.levels = np.concatenate([a[:1], cut, b[-1:]])

    def at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> half width, middle x, half length."""
        half, front, rear = (np.interp(z, *self.levels[:, [0, k]].T) for k in (1, 2, 3))
        return half, (front + rear) / 2, (front - rear) / 2

    def bow(self, share: np.ndarray) -> np.ndarray:
        """The superellipse's other coordinate."""
        return (1 - np.clip(np.abs(share), 0, 1) ** self.square) ** (1 / self.square)

    def side(self, x: np.ndarray, z: np.ndarray, margin: float = 0.06) -> np.ndarray:
        """Points on the left side, x kept at least margin away from the front and the rear."""
        z = np.maximum(z, self.levels[0, 0])
        half, middle, length = self.at(z)
        x = np.clip(x, middle - length + margin, middle + length - margin)
        return np.stack([x, half * self.bow((x - middle) / length), z], -1)

    def end(self, across: np.ndarray, z: np.ndarray, way: int) -> np.ndarray:
        """Points on the front (way 1) or the rear (-1); across is a share of the half width."""
        half, middle, length = self.at(z)
        return np.stack([middle + way * length * self.bow(across), across * half, z], -1)

    def skin(self) -> np.ndarray:
        """The whole hull as one grid: rows upwards, columns around, steps of some centimetres."""
        path = np.concatenate([[0], np.cumsum(np.abs(np.diff(self.levels, axis=0)).max(1))])
        z = np.interp(np.linspace(0, path[-1], int(path[-1] / 0.027)), path, self.levels[:, 0])
        half, middle, length = (v[:, None] for v in self.at(z))
        turn = np.linspace(0, 2 * np.pi, 201)
        x, y = -np.cos(turn), np.sin(turn)
        reach = (np.abs(x) ** self.square + np.abs(y) ** self.square) ** (-1 / self.square)
        x, y, z = middle + length * reach * x, half * reach * y, z[:, None]
        return np.stack(np.broadcast_arrays(x, y, z), -1)


def mirror_pair(grid: np.ndarray) -> list[np.ndarray]:
    """A part of the left side and its mirror image."""
    return [grid, grid[:, ::-1] * [1, -1, 1]]


def patch(
    on: Callable, a: tuple, z: tuple, roundness: float = 0.0, columns: int = 24
) -> np.ndarray:
    """A rectangle between a[0], a[1] and z[0], z[1] laid on(a, z); roundness 1 is an ellipse."""
    u, v = np.meshgrid(np.linspace(-1, 1, columns + 1), np.linspace(-1, 1, 15))
    bent_u, bent_v = u * np.sqrt(1 - roundness * v * v / 2), v * np.sqrt(1 - roundness * u * u / 2)
    return on(np.interp(bent_u, [-1, 1], a), np.interp(bent_v, [-1, 1], z))


def ellipsoid(centre: tuple, radii: tuple[float, float, float], lean: float = 0) -> np.ndarray:
    """Thick for a mirror, long for a rail, thin and leaning backwards for an antenna."""
    turn, rise = np.meshgrid(np.linspace(0, -2 * np.pi, 17), np.linspace(-1.5, 1.5, 25))
    ball = [np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)]
    points = np.stack(ball, -1) * radii
    points[..., 0] -= lean * points[..., 2]
    return np.array(centre) + points


def revolve(radius: np.ndarray, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Points around the y axis; the three broadcast together."""
    points = radius * np.cos(turn), y, -radius * np.sin(turn)
    return np.stack(np.broadcast_arrays(*points), -1)


def wheel(tyre: float, spokes: tuple[int, float, float, float]) -> list[Part]:
    """A left wheel around the origin, its face at y = 0; nothing closes the gaps between spokes."""
    rim, (count, at_hub, at_rim, twin) = 0.7 * tyre, spokes
    parts = []
    for material, section in WHEEL:
        radius, y = np.array(section).T[..., None]
        parts.append((material, revolve(rim * radius, y, np.linspace(0, 2 * np.pi, 73))))
    along = np.linspace(0, 1, 9)[:, None]
    radius, dish = rim * (0.12 + 0.84 * along), -0.005 - 0.02 * np.sin(np.pi * along)
    width = (at_hub + (at_rim - at_hub) * along) / radius * np.linspace(-1, 1, 5)
    for middle in np.arange(count) * 2 * np.pi / count:
        for twist in sorted({-twin, twin}):
            parts.append(("alloy", revolve(radius, dish, middle + twist + width)))
    return parts


def side_parts(body: Body, hull: Hull, finish: str) -> list[Part]:
    """Windows, doors, wheel arches, mirrors and roof rails (of this material), left and right."""

    def pane(x: np.ndarray, z: np.ndarray) -> np.ndarray:
        return hull.side(x, z, 0.34)  # room for the pillars of the two screens

    (low, high), pillars, hub, arch = body.glass, body.pillars, body.tyre, 1.13 * body.tyre
    frame = (pillars[-1] - 0.03, pillars[0]), (low - 0.02, high + 0.02)
    left = [("gap", patch(pane, *frame, 0.1, 60))]
    for front, rear in pairwise(pillars):
        seat = max(rear + 0.16, (front + rear) / 2 - 0.25)
        seat = (seat, seat + 0.2), (low, 0.4 * low + 0.6 * high)
        handle = (rear + 0.08, rear + 0.26), (low - 0.15, low - 0.12)
        left.append(("glass", patch(pane, (rear + 0.03, front - 0.02), (low, high), 0.08)))
        left.append(("seat", patch(pane, *seat, 0.5)))
        left.append(("gap", patch(hull.side, (rear - 0.005, rear + 0.005), (0.34, low))))
        left.append(("shell", patch(hull.side, *handle, 1)))
    for x in body.axles:  # a dark arch down to the sill; below it there is only the wheel
        left.append(("gap", patch(hull.side, (x - arch, x + arch), (hub - arch, hub + arch), 1)))
    mirror = np.add(hull.side(pillars[0] - 0.55, low + 0.06, 0.5), (0, 0.11, 0))
    left.append(("shell", ellipsoid(mirror, (0.07, 0.12, 0.08))))
    if body.rails:
        rail = hull.side((pillars[1] + pillars[-1]) / 2, high + 0.1)
        length = 0.38 * (pillars[1] - pillars[-1])
        rail = ellipsoid(np.add(rail, (0, -0.02, 0.02)), (length, 0.02, body.rails))
        left.append((finish, rail))
    return [(material, each) for material, grid in left for each in mirror_pair(grid)]


def end_parts(body: Body, hull: Hull, way: int) -> list[Part]:
    """The front (way 1) or the rear (-1): its screen and what NOSE or TAIL lists."""

    def on(across: np.ndarray, z: np.ndarray) -> np.ndarray:
        return hull.end(-way * across, z, way)

    (low, high), unit, things = body.glass, body.nose, NOSE
    if way == -1:
        low, unit, things = max(low, body.tail + 0.1), body.tail, TAIL
    parts = [
        ("gap", patch(on, (-0.94, 0.94), (low - 0.015, high + 0.02), 0.1, 40)),
        ("glass", patch(on, (-0.9, 0.9), (low, high + 0.01), 0.1, 40)),
    ]
    seat = patch(on, (0.2, 0.62), (low + 0.02, 0.4 * low + 0.6 * high), 0.6)
    parts += [("seat", each) for each in mirror_pair(seat)]
    for material, a0, a1, z0, z1, roundness in things:
        grid = patch(on, (a0, a1), (z0 * unit, z1 * unit), roundness)
        parts += [(material, each) for each in (mirror_pair(grid) if a0 > 0 else [grid])]
    return parts


def antenna(hull: Hull, tall: float) -> Part:
    """A rod some pixels thick on the roof's rear."""
    top, _, _, rear = hull.levels[-1]
    return "plastic", ellipsoid((rear - 0.5, 0, top - 0.06 + tall), (0.01, 0.01, tall), 0.7)


def build_car(
    rng: np.random.Generator, body: Body, paint: tuple[float, float, float, float]
) -> Car:
    """Build a car of a type of body; its size, wheels, place and the light of its day are drawn.

    paint: blue, green, red (linear light) and the share mirrored head on.
    """
    hull, stretch = Hull(body), rng.uniform(0.97, 1.03, 3)
    finish, tall = ["plastic", "alloy"][rng.integers(2)], rng.uniform(-0.2, 0.25)
    parts = [("paint", hull.skin()), *side_parts(body, hull, finish)]
    parts += end_parts(body, hull, 1) + end_parts(body, hull, -1)
    if tall > 0:
        parts.append(antenna(hull, max(tall, 0.1)))
    parts = [(material, grid * stretch) for material, grid in parts]
    wheels = wheel(body.tyre, SPOKES[rng.integers(len(SPOKES))])
    for x in body.axles:
        hub = hull.side(x, body.tyre) * stretch + [0, 0.012, 0]
        hub[2] = body.tyre
        parts += [(material, each) for material, grid in wheels for each in mirror_pair(grid + hub)]

    skins = MATERIALS | {"paint": (*paint, 0.0), "shell": (*paint, 0.3)}
    quads, surface = [], []
    for material, grid in parts:
        corners = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
        quads.append(np.stack(corners, 2).reshape(-1, 4, 3))
        surface.append(np.tile(skins[material], (len(quads[-1]), 1)))
    surface[0][quads[0][..., 2].mean(1) < body.cladding] = (*skins["plastic"][:4], 0.0)
    quads, surface = np.concatenate(quads), np.concatenate(surface)
    x, y = rng.uniform(-0.12, 0.12, 2)
    quads[..., :2] += x, y
    half, front, rear = hull.levels[:, 1].max(), hull.levels[:, 2].max(), hull.levels[:, 3].min()
    plan = x + (front + rear) / 2, y, (front - rear) / 2, half
    light = rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    seed = int(rng.integers(2**31))
    return Car(quads.astype(np.float32), surface.astype(np.float32), plan, light, seed)
