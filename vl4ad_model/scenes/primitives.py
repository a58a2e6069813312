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
        x = np.cross([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0], z)
        x /= np.linalg.norm(x)
        frame = np.stack((x, np.cross(z, x), z), axis=1)
        matrix = self.turn @ frame * (np.array([width, width, length]) * self.scale)[None, :]
        second = np.asarray(color) * 0.7
        self.scene.place(
            options.get("mesh", "cylinder"), matrix, self.origin + self.turn @ ((a + b) / 2 * self.scale), color, second,
            options.get("material", "plain"), options.get("texture", 1.0), options.get("gloss", 0.1), 0.0,
            options.get("displacement", 0.0), self.class_id, self.instance, self.seed,
        )  # fmt: skip
