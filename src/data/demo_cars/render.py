"""Render demo cars on a turntable, with the competition's camera position and studio.

The painter's algorithm draws a car's quads from far to near. Image and mask come from the same
drawing.
"""

from functools import lru_cache

import cv2
import numpy as np

from data.demo_cars.cars import Car

N_VIEWS = 16
FRAME_WIDTH = 1918  # pixel units of the camera constants below
FRAME_SIZE = (1280, FRAME_WIDTH)  # height, width of the competition's images
# A pinhole camera with a shifted sensor, so that vertical lines stay vertical.
FOCAL_LENGTH, HORIZON = 1780.0, 330.0
CAMERA_DISTANCE, CAMERA_HEIGHT = 6.9, 1.85  # meters from the turntable's axis, above the floor
TURNTABLE_RADIUS = 4.0
SUPERSAMPLING = 2


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Convert linear light (1: a white wall) to pixel values in [0, 255]."""
    return 255 * np.clip(1.02 * light - 0.01, 0, 1) ** (1 / 2.2)


def camera_axes(view: int) -> np.ndarray:
    """Return the 3×3 float32 rotation from the car's x, y, z to the camera's right, away, up."""
    angle = 2 * np.pi * (view - 1) / N_VIEWS
    s, c = np.sin(angle), np.cos(angle)
    return np.array([[-s, -c, 0], [c, -s, 0], [0, 0, 1]], np.float32)


def shade(
    materials: np.ndarray, normals: np.ndarray, rays: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Return the linear light of quads, Q×3.

    `materials` are rows of MATERIALS. `normals` and `rays`, from the camera, are unit vectors. `z`
    are heights.
    """
    facing = np.clip(-(normals * rays).sum(1), 0, 1)
    reflected_z = rays[:, 2] + 2 * facing * normals[:, 2]
    environment = np.interp(
        reflected_z, [-1, -0.35, -0.08, 0.0, 0.3, 0.5, 0.8], [0.06, 0.14, 0.28, 0.8, 0.85, 1.6, 1.7]
    )
    diffuse = np.interp(normals[:, 2], [-1, -0.3, 0, 0.5, 1], [0.15, 0.38, 0.62, 0.95, 1.1])
    diffuse *= np.interp(z, [0, 0.6], [0.55, 1])  # the floor near a car is dark
    f0 = materials[:, 3]
    reflectance = f0 + np.minimum(1, 20 * f0) * (1 - f0) * (1 - facing) ** 5  # Schlick
    specular = (reflectance * environment)[:, None]
    return materials[:, :3] * (diffuse * (1 - reflectance))[:, None] + specular


def project(points: np.ndarray, width: int) -> np.ndarray:
    """Project ...×3 points (meters right, away, up of the turntable's center) to column, row."""
    zoom = FOCAL_LENGTH / (points[..., 1] + CAMERA_DISTANCE)
    column = FRAME_WIDTH / 2 + zoom * points[..., 0]
    row = HORIZON + zoom * (CAMERA_HEIGHT - points[..., 2])
    return np.stack([column, row], -1) * (width / FRAME_WIDTH)


def draw_quads(car: Car, view: int, size: tuple[int, int], up: int = 1) -> np.ndarray:
    """Draw the car's visible quads: H×W×4 uint8 blue, green, red, coverage (0: no car).

    up=-1 draws the car's reflection in the floor.
    """
    points = car.quads @ camera_axes(view) * np.array([1, 1, up], np.float32)
    normals = up * np.cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    rays = points.mean(1) - [0, -CAMERA_DISTANCE, CAMERA_HEIGHT]
    distances = np.linalg.norm(rays, axis=1)
    rays /= distances[:, None]
    visible = np.flatnonzero((normals * rays).sum(1) < 0)
    depth_order = np.argsort((car.materials[:, 4] - distances)[visible], kind="stable")
    visible = visible[depth_order]

    z = up * points[visible, :, 2].mean(1)
    light = shade(car.materials[visible], normals[visible], rays[visible], z)
    colors = np.insert(to_srgb(light * car.exposure), 3, 255, axis=1).tolist()
    corners = np.rint(16 * project(points[visible], size[1])).astype(np.int32)
    canvas = np.zeros((*size, 4), np.uint8)
    for quad, color in zip(corners, colors, strict=True):
        cv2.fillConvexPoly(canvas, quad, color, cv2.LINE_8, 4)  # 4: corners in 1/16 pixels
    return canvas


def floor_coordinates(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each pixel's ray meets the floor: meters right of and behind the axis."""
    row, column = np.mgrid[: size[0], : size[1]].astype(np.float32) * (FRAME_WIDTH / size[1])
    depth = FOCAL_LENGTH * CAMERA_HEIGHT / np.maximum(row - HORIZON, 20)
    return (column - FRAME_WIDTH / 2) * depth / FOCAL_LENGTH, depth - CAMERA_DISTANCE


@lru_cache(maxsize=1)
def render_backdrop(
    size: tuple[int, int], exposure: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render the empty studio and the sensor noise (128: none), each H×W×3 uint8."""
    rng, (x, y), scale = np.random.default_rng(seed), floor_coordinates(size), size[1] / FRAME_WIDTH
    u, v = np.linspace(-1, 1, size[1]), np.linspace(0, 1, size[0])[:, None]
    wall = 0.91 - 0.05 * (1 - v) + 0.10 * np.exp(-(((v - 0.40) / 0.06) ** 2)) - 0.10 * u**2
    from_edge = np.hypot(x, y) - TURNTABLE_RADIUS
    spots = cv2.resize(rng.standard_normal((40, 60)), size[::-1], interpolation=cv2.INTER_CUBIC)
    ground = np.interp(y, [-4, 0, 6, 9], [0.44, 0.40, 0.36, 0.30]) * (1 - 0.12 * u**2)
    ground *= np.where(from_edge < 0, 1.06, 1) - 0.45 * np.exp(-((from_edge / 0.012) ** 2))
    ground *= 1 + 0.012 * spots
    below = np.clip(400 * (v - 0.405 - 0.01 * u**2), 0, 1)
    gray = wall * (1 - below) + ground * below
    image = to_srgb(gray[..., None] * exposure).astype(np.uint8)

    for text, left, thickness in (("TURN", 0.025, 12), ("TABLE", 0.47, 30)):
        origin = int(left * size[1]), int(0.375 * size[0])
        font, thickness = (cv2.FONT_HERSHEY_SIMPLEX, 10.2 * scale), max(1, round(thickness * scale))
        cv2.putText(image, text, origin, *font, (92, 88, 86), thickness, cv2.LINE_AA)
    noise = 128.5 + 1.6 * rng.standard_normal(image.shape, np.float32)
    return image, noise.astype(np.uint8)


def floor_illumination(car: Car, view: int, size: tuple[int, int]) -> np.ndarray:
    """Return the fraction of light on the floor that the car's shadow leaves, H×W float32."""
    x, y = floor_coordinates(size)
    center_x, center_y, length, half = car.footprint
    (xr, xa, _), (yr, ya, _), _ = camera_axes(view)
    along, across = (x * xr + y * xa - center_x) / length, (x * yr + y * ya - center_y) / half
    radius = (along**4 + across**4) ** 0.25
    return (1 - 0.75 * np.clip((1.3 - radius) / 0.6, 0, 1) ** 1.5).astype(np.float32)


def render_view(
    car: Car, view: int, size: tuple[int, int] = FRAME_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Render view 1..16 (22.5° apart; 1: front, 5: left side) at `size` (height, width).

    Returns the image, H×W×3 uint8 BGR, and the mask, H×W bool. The mask is True where the car
    covers at least half the pixel.
    """
    height, width = size
    image, noise = render_backdrop(size, tuple(car.exposure), car.seed)
    small = height // 4, width // 4  # reflection and shadow are smooth
    reflection = draw_quads(car, view, small, up=-1)
    reflection = cv2.GaussianBlur(reflection, (0, 0), 3 * width / FRAME_WIDTH) * np.float32(0.08)
    light = floor_illumination(car, view, small) * (1 - reflection[..., 3] / 255)
    image = image * cv2.resize(light, (width, height))[..., None]
    image += cv2.resize(reflection[..., :3], (width, height))

    fine = draw_quads(car, view, (SUPERSAMPLING * height, SUPERSAMPLING * width))
    drawn = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    image = image * (1 - drawn[..., 3:] / np.float32(255)) + drawn[..., :3]
    image = cv2.addWeighted(image.astype(np.uint8), 1, noise, 1, -128)
    return image, drawn[..., 3] >= 128
