"""Unit meshes, and the list of placed, coloured copies of them that a scene consists of."""

from __future__ import annotations

import numpy as np

# Floats per placed copy: 3x4 matrix, two colours, material, texture scale, gloss, emission, displacement, class, instance, seed
FLOATS = 12 + 6 + 8
MATERIALS = {
    "plain": 0, "asphalt": 1, "windows": 2, "brick": 3, "foliage": 4, "paint": 5, "glass": 6, "wood": 7, "stripes": 8,
    "light": 9, "tiles": 10, "sign": 11, "fabric": 12, "grass": 13, "metal": 14, "fur": 15,
}  # fmt: skip


def _grid(rows: int, columns: int) -> np.ndarray:
    """Triangle indices of a (rows + 1) x (columns + 1) lattice."""
    i, j = np.mgrid[0:rows, 0:columns]
    a = (i * (columns + 1) + j).ravel()
    return np.stack((a, a + 1, a + columns + 1, a + 1, a + columns + 2, a + columns + 1), axis=1).ravel()


def _surface(points: np.ndarray, normals: np.ndarray, rows: int, columns: int) -> np.ndarray:
    index = _grid(rows, columns)
    return np.concatenate((points.reshape(-1, 3)[index], normals.reshape(-1, 3)[index]), axis=1).astype(np.float32)


def _flat(triangles: np.ndarray) -> np.ndarray:
    """(T, 3, 3) corners to vertices with face normals that point away from the origin."""
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    outward = np.sign((normal * triangles.mean(axis=1)).sum(axis=1, keepdims=True))
    normal *= np.where(outward == 0, 1, outward)
    return np.concatenate((triangles.reshape(-1, 3), np.repeat(normal, 3, axis=0)), axis=1).astype(np.float32)


def _frustum(top: float, segments_top: tuple[float, float] = (1.0, 1.0), shift: float = 0.0) -> np.ndarray:
    """A box of half size 0.5 whose top face is scaled by `top` (x) and by `segments_top` and moved along y."""
    x, y = 0.5, 0.5
    tx, ty = x * top * segments_top[0], y * top * segments_top[1]
    low = np.array([[-x, -y, -0.5], [x, -y, -0.5], [x, y, -0.5], [-x, y, -0.5]])
    high = np.array([[-tx, -ty + shift, 0.5], [tx, -ty + shift, 0.5], [tx, ty + shift, 0.5], [-tx, ty + shift, 0.5]])
    corners = np.concatenate((low, high))
    faces = [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    return _flat(np.array([corners[[f[i] for i in t]] for f in faces for t in ((0, 1, 2), (0, 2, 3))]))


def _revolve(radii: list[float], heights: list[float], segments: int) -> np.ndarray:
    """A surface of revolution about z."""
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    r, h = np.asarray(radii, float), np.asarray(heights, float)
    points = np.stack((np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle)), np.repeat(h[:, None], segments + 1, 1)), -1)
    slope_r, slope_h = np.gradient(r), np.gradient(h)
    length = np.hypot(slope_r, slope_h) + 1e-9
    normals = np.stack(
        (
            np.outer(slope_h / length, np.cos(angle)),
            np.outer(slope_h / length, np.sin(angle)),
            np.repeat((-slope_r / length)[:, None], segments + 1, 1),
        ),
        -1,
    )
    return _surface(points, normals, len(r) - 1, segments)


def _sphere(rings: int, segments: int) -> np.ndarray:
    polar = np.linspace(0, np.pi, rings + 1)
    return _revolve((0.5 * np.sin(polar)).tolist(), (-0.5 * np.cos(polar)).tolist(), segments)


def _torus(radius: float, tube: float) -> np.ndarray:
    a, b = np.meshgrid(np.linspace(0, 2 * np.pi, 21), np.linspace(0, 2 * np.pi, 9), indexing="ij")
    ring = radius + tube * np.cos(b)
    points = np.stack((ring * np.cos(a), ring * np.sin(a), tube * np.sin(b)), -1)
    normals = np.stack((np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)), -1)
    return _surface(points, normals, 20, 8)


def _prism() -> np.ndarray:
    """A roof: a box whose top is a ridge along y."""
    c = np.array([[-0.5, -0.5, -0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, 0.5, -0.5], [0, -0.5, 0.5], [0, 0.5, 0.5]])
    faces = [(0, 1, 2), (0, 2, 3), (0, 1, 4), (2, 3, 5), (1, 2, 5), (1, 5, 4), (3, 0, 4), (3, 4, 5)]
    return _flat(np.array([c[list(f)] for f in faces]))


def _normals(points: np.ndarray) -> np.ndarray:
    """Smooth outward normals of a closed lattice (rows along, columns around)."""
    along = np.gradient(points, axis=0)
    wrapped = np.concatenate((points[:, -2:-1], points, points[:, 1:2]), axis=1)
    around = (wrapped[:, 2:] - wrapped[:, :-2]) / 2
    normal = np.cross(around, along)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-9
    center = points.mean(axis=1, keepdims=True)
    return normal * np.where((normal * (points - center)).sum() < 0, -1, 1)


def _rounded(power: float) -> np.ndarray:
    """A box with rounded edges: the superellipsoid of an exponent below 1."""

    def bend(value: np.ndarray) -> np.ndarray:
        return 0.5 * np.sign(value) * np.abs(value) ** power

    polar, angle = np.linspace(-np.pi / 2, np.pi / 2, 13)[:, None], np.linspace(0, 2 * np.pi, 25)[None]
    ring = np.abs(np.cos(polar)) ** power
    points = np.stack((bend(np.cos(angle)) * ring, bend(np.sin(angle)) * ring, bend(np.sin(polar)) + 0 * angle), axis=-1)
    normals = np.stack(
        [np.sign(points[..., i]) * np.abs(2 * points[..., i]) ** (2 / power - 1) for i in range(3)], axis=-1
    )  # fmt: skip
    normals /= np.linalg.norm(normals, axis=2, keepdims=True) + 1e-9
    return _surface(points, normals, 12, 24)


def _loft(stations: list[tuple[float, float, float, float, float]], sharpness: float) -> np.ndarray:
    """A body along y from sections (y, bottom z, top z, half width at the bottom, and at the top), each a rounded trapezium."""
    angle = np.linspace(0, 2 * np.pi, 21)
    across = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** sharpness
    upward = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** sharpness
    rings = []
    for y, low, high, wide_low, wide_high in stations:
        z = (low + high) / 2 + upward * (high - low) / 2
        half = wide_low + (wide_high - wide_low) * (upward + 1) / 2
        rings.append(np.stack((across * half, np.full_like(z, y), z - 0.5), axis=-1))
    first, last = rings[0].mean(axis=0, keepdims=True), rings[-1].mean(axis=0, keepdims=True)
    points = np.stack([np.repeat(first, 21, axis=0), *rings, np.repeat(last, 21, axis=0)])
    normals = _normals(points)
    normals[0], normals[-1] = (0, -1, 0), (0, 1, 0)
    return _surface(points, normals, len(points) - 1, 20)


# Cars in side view, as fractions of length (front -0.5, rear 0.5) and height (ground 0, roof 1).
# height of bonnet, height of boot, sill, foot of the windscreen, front and rear edge of the roof, foot of the rear window
CAR_PROFILES: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "sedan": (0.58, 0.64, 0.14, -0.23, -0.05, 0.17, 0.35),
    "hatch": (0.57, 0.62, 0.14, -0.26, -0.07, 0.31, 0.46),
    "estate": (0.58, 0.62, 0.14, -0.23, -0.05, 0.39, 0.48),
    "suv": (0.60, 0.62, 0.2, -0.25, -0.09, 0.38, 0.47),
    "van": (0.52, 0.55, 0.16, -0.41, -0.2, 0.46, 0.49),
    "pickup": (0.58, 0.56, 0.22, -0.24, -0.09, 0.09, 0.13),
    "coupe": (0.56, 0.63, 0.13, -0.2, 0.0, 0.1, 0.42),
}


def _car_body(profile) -> np.ndarray:
    bonnet, boot, sill, screen, _, _, back = profile
    return _loft(
        [
            (-0.5, sill + 0.12, bonnet - 0.16, 0.36, 0.34),
            (-0.488, sill + 0.04, bonnet - 0.1, 0.43, 0.41),
            (-0.45, sill, bonnet - 0.06, 0.475, 0.45),
            (-0.36, sill, bonnet - 0.02, 0.495, 0.465),
            (screen, sill - 0.01, bonnet + 0.05, 0.5, 0.47),
            (0.0, sill - 0.01, bonnet + 0.06, 0.5, 0.475),
            (back * 0.6, sill - 0.01, boot + 0.01, 0.5, 0.475),
            (max(back, 0.2), sill, boot + 0.01, 0.5, 0.475),
            (0.45, sill, boot - 0.01, 0.48, 0.46),
            (0.488, sill + 0.05, boot - 0.05, 0.45, 0.43),
            (0.5, sill + 0.12, boot - 0.12, 0.38, 0.36),
        ],
        0.42,
    )


def _car_glass(profile) -> np.ndarray:
    bonnet, _, _, screen, front, rear, back = profile
    low = bonnet - 0.02
    stations = [(screen, low, low + 0.03, 0.44, 0.42)]
    stations += [(screen + (front - screen) * t, low, low + (0.985 - low) * t, 0.455, 0.44 - 0.08 * t) for t in (0.35, 0.7, 0.93)]
    stations += [(front + (rear - front) * t, low, 1.0 - 0.012 * abs(2 * t - 1), 0.46, 0.35) for t in (0.08, 0.5, 0.95)]
    stations += [(rear + (back - rear) * t, low, 0.97 - (0.97 - low) * t, 0.455, 0.36 + 0.07 * t) for t in (0.25, 0.65, 1.0)]
    return _loft(stations, 0.3)


def _car_roof(profile) -> np.ndarray:
    _, _, _, screen, front, rear, back = profile
    stations = [(front - (front - screen) * 0.12, 0.93, 0.95, 0.3, 0.3)]
    stations += [(front + (rear - front) * t, 0.94, 1.012 - 0.012 * abs(2 * t - 1), 0.375, 0.35) for t in (0.05, 0.5, 0.95)]
    stations += [(rear + (back - rear) * 0.1, 0.92, 0.96, 0.31, 0.31)]
    return _loft(stations, 0.4)


# An open boat: pointed in front, flat behind.
_HULL = [
    (-0.5, 0.6, 1.0, 0.01, 0.02),
    (-0.44, 0.3, 0.97, 0.05, 0.14),
    (-0.3, 0.12, 0.9, 0.14, 0.33),
    (-0.1, 0.02, 0.85, 0.24, 0.46),
    (0.15, 0.0, 0.84, 0.28, 0.5),
    (0.4, 0.02, 0.86, 0.26, 0.46),
    (0.5, 0.06, 0.88, 0.22, 0.42),
]


# Every mesh fits into the unit cube around the origin; z is up.
MESHES: dict[str, np.ndarray] = {
    "box": _frustum(1.0),
    "frustum": _frustum(0.7),
    "cabin": _frustum(0.86, (1.0, 0.72), -0.03),
    "wedge": _frustum(1.0, (1.0, 0.45), -0.2),
    "cylinder": _revolve([0.0, 0.5, 0.5, 0.5, 0.5, 0.0], [-0.5, -0.5, -0.499, 0.499, 0.5, 0.5], 14),
    "cone": _revolve([0.0, 0.5, 0.49, 0.02], [-0.5, -0.5, -0.48, 0.5], 14),
    "sphere": _sphere(8, 14),
    "blob": _sphere(12, 18),
    "torus": _torus(0.38, 0.12),
    "ring": _torus(0.46, 0.04),
    "prism": _prism(),
    "rounded": _rounded(0.3),
    "pail": _revolve([0.0, 0.36, 0.36, 0.5, 0.47, 0.36, 0.0], [-0.5, -0.5, -0.49, 0.5, 0.5, -0.3, -0.3], 16),
    "hull": _loft(_HULL, 0.7),
    **{f"{name} body": _car_body(profile) for name, profile in CAR_PROFILES.items()},
    **{f"{name} glass": _car_glass(profile) for name, profile in CAR_PROFILES.items()},
    **{f"{name} roof": _car_roof(profile) for name, profile in CAR_PROFILES.items()},
}


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation matrix: roll about y (forward), then pitch about x (right), then yaw about z (up); radians."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return about_z @ about_x @ about_y


class Scene:
    """Everything in a scene, as rows of numbers per mesh. Metres; x right, y forward, z up."""

    def __init__(self) -> None:
        self.rows: dict[str, list[np.ndarray]] = {name: [] for name in MESHES}

    def place(
        self, mesh: str, matrix: np.ndarray, center: np.ndarray, color, color2, material: str, texture: float,
        gloss: float, emission: float, displacement: float, class_id: int, instance: int, seed: float,
    ) -> None:  # fmt: skip
        row = np.empty(FLOATS, np.float32)
        row[:12] = np.concatenate((matrix, np.asarray(center)[:, None]), axis=1).ravel()
        row[12:15], row[15:18] = color, color2
        row[18:] = (MATERIALS[material], texture, gloss, emission, displacement, class_id, instance, seed)
        self.rows[mesh].append(row)

    def arrays(self) -> dict[str, np.ndarray]:
        """mesh name -> (copies, FLOATS) float32."""
        return {name: np.stack(rows) for name, rows in self.rows.items() if rows}


class Pen:
    """Draws one object into a scene: a place, a heading, a size, a class, and shapes relative to those."""

    def __init__(self, scene: Scene, rng, class_id: int, *, at=(0, 0, 0), yaw=0.0, scale=1.0, instance=0, tilt=(0.0, 0.0)):
        self.scene, self.rng, self.class_id, self.instance = scene, rng, class_id, instance
        self.origin, self.turn, self.scale = np.asarray(at, float), rotation(yaw, *tilt), scale
        self.seed = float(rng.random() * 100)

    def with_class(self, class_id: int) -> Pen:
        """The same place and heading for a part of another class."""
        other = object.__new__(Pen)
        other.__dict__.update(self.__dict__, class_id=class_id)
        return other

    def draw(
        self, mesh: str, center, size, color, *, color2=None, material="plain", yaw=0.0, pitch=0.0, roll=0.0,
        texture=1.0, gloss=0.1, emission=0.0, displacement=0.0,
    ) -> None:  # fmt: skip
        """One shape: centre and size in metres in the object's own frame, colours in 0..1."""
        matrix = self.turn @ rotation(yaw, pitch, roll) * (np.asarray(size, float) * self.scale)[None, :]
        place = self.origin + self.turn @ (np.asarray(center, float) * self.scale)
        second = np.asarray(color) * 0.7 if color2 is None else color2
        self.scene.place(
            mesh, matrix, place, color, second, material, texture, gloss, emission, displacement, self.class_id,
            self.instance, self.seed,
        )  # fmt: skip

    def rod(self, start, end, width: float, color, **options) -> None:
        """A cylinder from one point to another."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        axis = b - a
        length = float(np.linalg.norm(axis)) + 1e-9
        z = axis / length
        # across any axis that is not its own; written out, since np.cross takes longer than all the rest
        x = np.array((z[2], 0.0, -z[0]) if abs(z[1]) < 0.9 else (0.0, -z[2], z[1]))
        x /= np.sqrt(x @ x)
        y = np.array((z[1] * x[2] - z[2] * x[1], z[2] * x[0] - z[0] * x[2], z[0] * x[1] - z[1] * x[0]))
        frame = np.stack((x, y, z), axis=1)
        matrix = self.turn @ frame * (np.array([width, width, length]) * self.scale)[None, :]
        second = np.asarray(color) * 0.7
        self.scene.place(
            options.get("mesh", "cylinder"), matrix, self.origin + self.turn @ ((a + b) / 2 * self.scale), color, second,
            options.get("material", "plain"), options.get("texture", 1.0), options.get("gloss", 0.1), 0.0,
            options.get("displacement", 0.0), self.class_id, self.instance, self.seed,
        )  # fmt: skip
