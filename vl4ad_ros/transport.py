"""Large images through DDS: what a process's environment needs before its first node, or nothing may arrive.

With Fast DDS's defaults, best-effort images of 1280x720 and more are lost and reliable ones take 77 ms; with a shared-memory
segment that holds several of them, and an allocator that keeps their memory, they take 3 ms. CycloneDDS sends them in datagrams:
where a socket's buffer does not hold a whole image, half of them and more are lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from vl4ad_model.shared_files import shared_file

PROFILE = Path("config/fastdds_large_images.xml")
SWITCH = "VL4AD_LARGE_IMAGES"
"""Set to 0 to leave a process's transport as it is."""
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS looks for a profile: 3 (Kilted) reads the first and warns of the second, 2 (Jazzy) only knows the second."""
CYCLONE = "rmw_cyclonedds_cpp"
CYCLONE_PROFILE = Path("config/cyclonedds_large_images.xml")
CYCLONE_VARIABLE = "CYCLONEDDS_URI"
SOCKET_LIMIT = Path("/proc/sys/net/core/rmem_max")
SOCKET_BYTES = 4 << 20
"""With a lower limit the profile's large datagrams lose more images than small ones would."""
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def profile_variables(environment: MutableMapping[str, str]) -> tuple[str, ...]:
    """Those of `PROFILE_VARIABLES` to set: by the Fast DDS library on the path; both where none is found."""
    for folder in [*environment.get("LD_LIBRARY_PATH", "").split(os.pathsep), os.path.join(sys.prefix, "lib")]:
        if folder and any(Path(folder).glob("libfastdds.so*")):
            return PROFILE_VARIABLES[:1]
        if folder and any(Path(folder).glob("libfastrtps.so*")):
            return PROFILE_VARIABLES[1:]
    return PROFILE_VARIABLES


def profile_is_set(environment: MutableMapping[str, str]) -> bool:
    """Whether somebody chose a profile or transport already."""
    return any(environment.get(name) for name in (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"))


def socket_limit() -> int | None:
    """Largest receive buffer of a socket in bytes, or None where the system does not tell."""
    try:
        return int(SOCKET_LIMIT.read_text())
    except (OSError, ValueError):
        return None


def socket_advice(middleware: str, limit: int | None) -> str:
    """What has to be done so that images of 1280x720 arrive; empty where nothing has.

    Args:
        middleware: as rclpy names it.
        limit: `socket_limit()`.
    """
    if middleware != CYCLONE or limit is None or limit >= SOCKET_BYTES:
        return ""
    return (
        f"CycloneDDS loses images of 1280x720 and more while the limit of socket buffers is {limit} bytes: "
        "sudo sysctl -w net.core.rmem_max=16777216, and see 'Large images' in docs/ros.md"
    )


def large_image_environment(environment: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """The variables to add to the environment of a process that sends or receives large images; none where the switch is 0.

    Args:
        environment: what it would have otherwise; what is set there stays.
    """
    environment = os.environ if environment is None else environment
    if environment.get(SWITCH) == "0":
        return {}
    wanted = dict(ALLOCATOR)
    profile = shared_file(PROFILE)
    if profile is not None and not profile_is_set(environment):
        wanted |= dict.fromkeys(profile_variables(environment), str(profile))
    cyclone, limit = shared_file(CYCLONE_PROFILE), socket_limit()
    may_be_cyclone = environment.get("RMW_IMPLEMENTATION", CYCLONE) == CYCLONE
    if cyclone is not None and may_be_cyclone and limit is not None and limit >= SOCKET_BYTES:
        wanted[CYCLONE_VARIABLE] = cyclone.as_uri()
    return {name: value for name, value in wanted.items() if not environment.get(name)}


def prepare_this_process() -> None:
    """The same for the running process; only before rclpy.init. Does nothing where the switch is 0."""
    if os.environ.get(SWITCH) == "0":
        return
    os.environ.update(large_image_environment())
    # glibc has read its variables at start; mallopt says the same to the running process.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mmap_threshold, top_pad, trim_threshold = -3, -2, -1
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 64 << 20)


def return_free_memory() -> None:
    """After a model was given back: its pages too, which the allocator as set up above keeps for every thread that loaded one."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
