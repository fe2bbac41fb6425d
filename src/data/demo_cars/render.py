"""The demo's photographs: a car on a turntable, as the competition photographed real ones.

The painter's algorithm draws the car's quads from the farthest to the nearest.  Photograph and mask
are the same drawing.
"""

from functools import lru_cache

import cv2
import numpy as np

from data.demo_cars.cars import Car

N_VIEWS = 16
FRAME_WIDTH = 1918  # the camera's pixels are those of a frame this wide
FOCAL, HORIZON = 1780.0, 330.0  # a pinhole whose sensor is shifted, not tilted: verticals stay so
DISTANCE, CAMERA_HEIGHT = 6.9, 1.85  # of the camera, from the turntable's axis and above the floor
TURNTABLE = 4.0  # radius
SUPERSAMPLING = 2  # the car is drawn this many times finer than the frame, then averaged


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light (1: a white wall) -> a photograph's 0..255."""
    return 255 * np.clip(1.02 * light - 0.01, 0, 1) ** (1 / 2.2)


def camera_axes(view: int) -> np.ndarray:
    """(3, 3) float32: the car's x, y, z as the camera has them: right, away, up."""
    turn = 2 * np.pi * (view - 1) / N_VIEWS
    s, c = np.sin(turn), np.cos(turn)
    return np.array([[-s, -c, 0], [c, -s, 0], [0, 0, 1]], np.float32)


def shade(surface: np.ndarray, normal: np.ndarray, sight: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Rows of MATERIALS, unit normals, unit sight, height -> (Q, 3) linear light."""
    facing = np.clip(-(normal * sight).sum(1), 0, 1)
    mirrored = sight[:, 2] + 2 * facing * normal[:, 2]  # how steeply the mirrored ray goes up
    room = np.interp(
        mirrored, [-1, -0.35, -0.08, 0.0, 0.3, 0.5, 0.8], [0.06, 0.14, 0.28, 0.8, 0.85, 1.6, 1.7]
    )
    soft = np.interp(normal[:, 2], [-1, -0.3, 0, 0.5, 1], [0.15, 0.38, 0.62, 0.95, 1.1])
    soft *= np.interp(z, [0, 0.6], [0.55, 1])  # the floor near a car is dark
    share = surface[:, 3]
    share = share + np.minimum(1, 20 * share) * (1 - share) * (1 - facing) ** 5  # Schlick
    return surface[:, :3] * (soft * (1 - share))[:, None] + (share * room)[:, None]


def project(points: np.ndarray, width: int) -> np.ndarray:
    """(..., 3) metres right, away and up of the turntable's middle -> (..., 2) column, row."""
    zoom = FOCAL / (points[..., 1] + DISTANCE)
    column, row = (
        FRAME_WIDTH / 2 + zoom * points[..., 0],
        HORIZON + zoom * (CAMERA_HEIGHT - points[..., 2]),
    )
    return np.stack([column, row], -1) * (width / FRAME_WIDTH)


def draw(car: Car, view: int, size: tuple[int, int], up: int = 1) -> np.ndarray:
    """-> (*size, 4) uint8: blue, green, red and coverage, 0 where no car is.

    up = -1 draws the car's mirror image in the floor.
    """
    points = car.quads @ camera_axes(view) * np.array([1, 1, up], np.float32)
    normal = up * np.cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    sight = points.mean(1) - [0, -DISTANCE, CAMERA_HEIGHT]
    away = np.linalg.norm(sight, axis=1)
    sight /= away[:, None]
    seen = np.flatnonzero((normal * sight).sum(1) < 0)
    seen = seen[np.argsort((car.surface[:, 4] - away)[seen], kind="stable")]

    z = up * points[seen, :, 2].mean(1)
    colours = to_srgb(shade(car.surface[seen], normal[seen], sight[seen], z) * car.light)
    colours = np.insert(colours, 3, 255, axis=1).tolist()
    corners = np.rint(16 * project(points[seen], size[1])).astype(np.int32)
    canvas = np.zeros((*size, 4), np.uint8)
    for quad, colour in zip(corners, colours, strict=True):
        cv2.fillConvexPoly(canvas, quad, colour, cv2.LINE_8, 4)  # 4: corners in 1/16 pixels
    return canvas


def floor(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """-> metres right of and behind the turntable's axis where a pixel's ray meets the floor."""
    row, column = np.mgrid[: size[0], : size[1]].astype(np.float32) * (FRAME_WIDTH / size[1])
    depth = FOCAL * CAMERA_HEIGHT / np.maximum(row - HORIZON, 20)
    return (column - FRAME_WIDTH / 2) * depth / FOCAL, depth - DISTANCE


@lru_cache(maxsize=1)
def backdrop(
    size: tuple[int, int], light: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> the empty studio and the sensor's noise (128: none), (*size, 3) uint8 each."""
    rng, (x, y), scale = np.random.default_rng(seed), floor(size), size[1] / FRAME_WIDTH
    u, v = np.linspace(-1, 1, size[1]), np.linspace(0, 1, size[0])[:, None]
    wall = 0.91 - 0.05 * (1 - v) + 0.10 * np.exp(-(((v - 0.40) / 0.06) ** 2)) - 0.10 * u**2
    away = np.hypot(x, y) - TURNTABLE
    spots = cv2.resize(rng.standard_normal((40, 60)), size[::-1], interpolation=cv2.INTER_CUBIC)
    ground = np.interp(y, [-4, 0, 6, 9], [0.44, 0.40, 0.36, 0.30]) * (1 - 0.12 * u**2)
    ground *= np.where(away < 0, 1.06, 1) - 0.45 * np.exp(-((away / 0.012) ** 2))
    ground *= 1 + 0.012 * spots
    below = np.clip(400 * (v - 0.405 - 0.01 * u**2), 0, 1)
    grey = wall * (1 - below) + ground * below
    photo = to_srgb(grey[..., None] * light).astype(np.uint8)

    for text, left, thick in (("TURN", 0.025, 12), ("TABLE", 0.47, 30)):
        at, thick = (int(left * size[1]), int(0.375 * size[0])), max(1, round(thick * scale))
        font = cv2.FONT_HERSHEY_SIMPLEX, 10.2 * scale
        cv2.putText(photo, text, at, *font, (92, 88, 86), thick, cv2.LINE_AA)
    noise = 128.5 + 1.6 * rng.standard_normal(photo.shape, np.float32)
    return photo, noise.astype(np.uint8)


def shadow(car: Car, view: int, size: tuple[int, int]) -> np.ndarray:
    """-> (*size,) float32: the share of light which the car leaves to the floor."""
    x, y = floor(size)
    middle, left, length, half = car.plan
    (xr, xa, _), (yr, ya, _), _ = camera_axes(view)
    along, across = (x * xr + y * xa - middle) / length, (x * yr + y * ya - left) / half
    reach = (along**4 + across**4) ** 0.25
    return (1 - 0.75 * np.clip((1.3 - reach) / 0.6, 0, 1) ** 1.5).astype(np.float32)


def render_view(
    car: Car, view: int, size: tuple[int, int] = (1280, FRAME_WIDTH)
) -> tuple[np.ndarray, np.ndarray]:
    """View 1..16, 22.5 degrees apart: 1 is the car's front, 5 its left side; size is height, width.

    -> image (*size, 3) uint8 blue-green-red; mask (*size,) bool: the car covers >= half the pixel.
    """
    height, width = size
    photo, noise = backdrop(size, tuple(car.light), car.seed)
    small = height // 4, width // 4  # enough for what is soft: the mirror image and the shadow
    mirrored = cv2.GaussianBlur(draw(car, view, small, up=-1), (0, 0), 3 * width / FRAME_WIDTH)
    mirrored = mirrored * np.float32(0.08)
    lit = shadow(car, view, small) * (1 - mirrored[..., 3] / 255)
    photo = photo * cv2.resize(lit, (width, height))[..., None]
    photo += cv2.resize(mirrored[..., :3], (width, height))

    fine = draw(car, view, (SUPERSAMPLING * height, SUPERSAMPLING * width))
    drawn = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    photo = photo * (1 - drawn[..., 3:] / np.float32(255)) + drawn[..., :3]
    photo = cv2.addWeighted(photo.astype(np.uint8), 1, noise, 1, -128)
    return photo, drawn[..., 3] >= 128
