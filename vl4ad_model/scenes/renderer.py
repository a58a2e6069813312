"""Draws a scene with OpenGL (EGL, no screen needed): a colour image, and the exact class and instance of every pixel."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np

from vl4ad_model.errors import MissingDependencyError, SceneError
from vl4ad_model.scenes import shaders
from vl4ad_model.scenes.primitives import FLOATS, MATERIALS, MESHES, Scene, rotation
from vl4ad_model.scenes.world import World

SUPERSAMPLE = 2
SHADOW_SIZE = 1024
_LAYOUT = "4f 4f 4f 3f 3f 4f 4f/i"
_NAMES = ("in_row0", "in_row1", "in_row2", "in_color", "in_color2", "in_look", "in_tag")


class Rendered(NamedTuple):
    """image: (H, W, 3) float32 linear light; class_ids: (H, W) uint8; instances: (H, W) uint16, 0 = none."""

    image: np.ndarray
    class_ids: np.ndarray
    instances: np.ndarray


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """4x4 view matrix, z up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
    view = np.eye(4)
    view[:3, :3] = (right, up, -forward)
    view[:3, 3] = -view[:3, :3] @ eye
    return view


def perspective(horizontal_fov: float, aspect: float, near: float = 0.15, far: float = 400.0) -> np.ndarray:
    """4x4 projection; field of view in radians."""
    f = 1 / np.tan(horizontal_fov / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[1, 1] = f, f * aspect
    matrix[2, 2:] = (far + near) / (near - far), 2 * far * near / (near - far)
    matrix[3, 2] = -1
    return matrix


def require_renderer() -> None:
    """Find out before anything is written whether rendering is installed.

    Raises:
        MissingDependencyError: moderngl is not.
    """
    try:
        import moderngl  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError("moderngl", "scenes", "rendering scenes") from None


class Renderer:
    """One OpenGL context and its programs; renders many worlds of one size.

    Raises:
        MissingDependencyError: moderngl is not installed.
        SceneError: no EGL on this machine, or a size that its OpenGL cannot draw.
    """

    def __init__(self, height: int, width: int) -> None:
        require_renderer()
        import moderngl

        # Triton and Mesa each bring an LLVM. Triton, which torch loads for some of its work, crashes if it comes second.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
        try:
            self.gl = moderngl.create_standalone_context(backend="egl")  # type: ignore[arg-type]
        except Exception as error:
            raise SceneError(f"no EGL for rendering ({error}): install libegl1 and libgl1-mesa-dri") from None
        self.size = (height, width)
        gl, full = self.gl, (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.programs = {
            "solid": gl.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.FRAGMENT),
            "foliage": gl.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.FOLIAGE_FRAGMENT),
            "depth": gl.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.DEPTH_FRAGMENT),
            "sky": gl.program(vertex_shader=shaders.SKY_VERTEX, fragment_shader=shaders.SKY_FRAGMENT),
            "cutout": gl.program(vertex_shader=shaders.CUTOUT_VERTEX, fragment_shader=shaders.CUTOUT_FRAGMENT),
        }
        self.meshes = {name: gl.buffer(mesh.tobytes()) for name, mesh in MESHES.items()}
        corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], "f4")
        self.corners = gl.buffer(corners.tobytes())
        try:
            self.color, self.ids = gl.texture(full, 3, dtype="f2"), gl.texture(full, 2, dtype="u2")
            self.target = gl.framebuffer([self.color, self.ids], gl.depth_renderbuffer(full))
        except moderngl.Error as error:
            most = min(gl.info["GL_MAX_TEXTURE_SIZE"], gl.info["GL_MAX_RENDERBUFFER_SIZE"]) // SUPERSAMPLE
            raise SceneError(f"{width}x{height} is too large for this OpenGL ({error}): it draws sides of at most {most}") from None
        self.shadow = gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.shadow.compare_func = "<="
        self.shadow_target = gl.framebuffer(depth_attachment=self.shadow)
        self.top = gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.top.compare_func = ""
        self.top_target = gl.framebuffer(depth_attachment=self.top)

    def render(self, world: World, pictures: np.ndarray | None = None) -> Rendered:
        """Draw a world.

        Args:
            pictures: (n, 256, 256, 4) uint8 cut-outs that the world's `cutouts` refer to by index.
        """
        import moderngl

        gl = self.gl
        height, width = self.size
        batches: list[tuple] = []
        garbage: list[Any] = []
        for name, rows in world.scene.arrays().items():
            assert rows.shape[1] == FLOATS
            leafy = rows[:, 18] == MATERIALS["foliage"]
            for program, part in (("solid", rows[~leafy]), ("foliage", rows[leafy])):
                if len(part):
                    data = gl.buffer(np.ascontiguousarray(part, np.float32).tobytes())
                    garbage.append(data)
                    batches.append((program, self.meshes[name], data, len(part), len(MESHES[name])))
        sun = world.light.sun_direction
        center = np.array([0.0, world.camera.position[1] + 28.0, 0.0])
        box = np.diag([1 / 42.0, 1 / 42.0, -1 / 90.0, 1.0])
        shadow_matrix = box @ look_at(center + sun * 60, center)
        # looking down: x and y as they are, depth 0..1 from 70 m above the ground to 10 m below
        top_matrix = np.array([[1 / 42, 0, 0, 0], [0, 1 / 42, 0, -center[1] / 42], [0, 0, -1 / 40, 0.75], [0, 0, 0, 1.0]])
        view = look_at(world.camera.position, world.camera.target, world.camera.roll)
        view_projection = perspective(world.camera.horizontal_fov, width / height) @ view
        bend = tuple(world.bend)

        gl.enable(moderngl.DEPTH_TEST)
        gl.depth_func = "<="
        for target, matrix in ((self.shadow_target, shadow_matrix), (self.top_target, top_matrix)):
            target.use()
            target.clear()
            _set(self.programs["depth"], view_projection=matrix, bend=bend)
            self._draw(batches, "depth")
            if target is self.top_target and world.cutouts:  # pictures have no thickness that the zenith could see
                self._draw([self._feet(world, garbage)], "depth")

        self.target.use()
        self.target.clear()
        # depths first, so that no pixel is shaded twice: a quarter less time, the same pixels
        self.target.color_mask = ((False,) * 4,) * 2  # type: ignore[assignment]
        _set(self.programs["depth"], view_projection=view_projection, bend=bend)
        self._draw([batch for batch in batches if batch[0] == "solid"], "depth")
        self.target.color_mask = ((True,) * 4,) * 2  # type: ignore[assignment]
        light = world.light
        common = {"fog_color": light.fog_color, "fog_density": light.fog_density, "eye": world.camera.position}
        self.shadow.use(0)
        self.top.use(2)
        for program in ("solid", "foliage"):
            _set(
                self.programs[program],
                view_projection=view_projection,
                shadow_matrix=shadow_matrix,
                top_matrix=top_matrix,
                bend=bend,
                sun_direction=sun,
                sun_color=light.sun_color,
                sky_color=light.sky_light,
                ground_color=light.ground_light,
                shadow_map=0,
                top_map=2,
                wetness=light.wetness,
                snow=light.snow,
                **common,
            )
        self._draw(batches)
        if world.cutouts and pictures is not None and len(pictures):
            texture = gl.texture_array((pictures.shape[2], pictures.shape[1], len(pictures)), 4, pictures.tobytes())
            texture.build_mipmaps()
            texture.use(1)
            rows = np.array(world.cutouts, "f4")
            buffer = gl.buffer(rows.tobytes())
            garbage += [texture, buffer]
            _set(
                self.programs["cutout"], view_projection=view_projection, bend=bend, pictures=1,
                light=np.asarray(light.sun_color) * 0.55 + np.asarray(light.sky_light), **common,
            )  # fmt: skip
            array = gl.vertex_array(
                self.programs["cutout"],
                [(self.corners, "2f", "in_corner"), (buffer, "4f 4f 2f/i", "in_place", "in_look", "in_ids")],
            )
            array.render(moderngl.TRIANGLE_STRIP, instances=len(rows))
            garbage.append(array)
        _set(
            self.programs["sky"], inverse_view=np.linalg.inv(view_projection), sky_top=light.sky_top, sky_low=light.sky_low,
            cloud_color=light.cloud_color, clouds=light.clouds, sun_direction=sun, sun_color=light.sun_color, seed=light.seed,
            fog_color=light.fog_color, fog_density=light.fog_density,
        )  # fmt: skip
        array = gl.vertex_array(self.programs["sky"], [(self.corners, "2f", "in_corner")])
        array.render(moderngl.TRIANGLE_STRIP)
        garbage.append(array)

        s = SUPERSAMPLE
        image = np.frombuffer(self.color.read(), np.float16).reshape(height * s, width * s, 3)[::-1].astype(np.float32)
        ids = np.frombuffer(self.ids.read(), np.uint16).reshape(height * s, width * s, 2)[::-1]
        for item in garbage:
            item.release()
        image = np.nan_to_num(image).reshape(height, s, width, s, 3).mean(axis=(1, 3))
        return Rendered(image, ids[::s, ::s, 0].astype(np.uint8), ids[::s, ::s, 1].copy())

    def _feet(self, world: World, garbage: list):
        """Low boxes where cut-outs touch the ground."""
        scene = Scene()
        for x, y, z, yaw, width, height, *_ in world.cutouts:
            size = np.array([abs(width) * 0.6, 0.3, height * 0.3])
            matrix = rotation(yaw) * size[None, :]
            scene.place("box", matrix, np.array([x, y, z + size[2] / 2]), (0, 0, 0), (0, 0, 0), "plain", 1, 0, 0, 0, 0, 0, 0)
        rows = scene.arrays()["box"]
        data = self.gl.buffer(rows.tobytes())
        garbage.append(data)
        return "solid", self.meshes["box"], data, len(rows), len(MESHES["box"])

    def _draw(self, batches, only: str | None = None) -> None:
        for program, mesh, data, copies, vertices in batches:
            array = self.gl.vertex_array(
                self.programs[only or program],
                [(mesh, "3f 3f", "in_position", "in_normal"), (data, _LAYOUT, *_NAMES)],
                skip_errors=True,
            )
            array.render(instances=copies, vertices=vertices)
            array.release()


def _set(program, **uniforms) -> None:
    """Set the uniforms that the compiler kept."""
    for name, value in uniforms.items():
        if name not in program:
            continue
        if isinstance(value, np.ndarray) and value.shape == (4, 4):
            program[name].write(value.T.astype("f4").tobytes())
        elif isinstance(value, (int, float)):
            program[name].value = value
        else:
            program[name].value = tuple(float(v) for v in value)
