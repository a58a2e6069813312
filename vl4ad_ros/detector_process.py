"""The detector as a process of its own, for programs that need one: the demo, the benchmark, the replay, the tests."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vl4ad_model.errors import Vl4adError
from vl4ad_ros import parameters, transport

READY = " is active, listening to "
"""What the node logs once images can come."""


END_WITH_PARENT = "VL4AD_END_WITH"
"""Set for a started detector to the process it shall not outlive, however that one ends."""


def end_with_parent() -> None:
    """In the detector: SIGTERM for itself when the process named in the environment is gone.

    Linux would send one by itself (PR_SET_PDEATHSIG), but already when the thread that started the detector ends.
    """
    parent = os.environ.get(END_WITH_PARENT)
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


class DetectorProcessError(Vl4adError):
    """The detector did not start, or ended by itself; the message has its last words."""


def own_domain() -> int:
    """A ROS domain for a detector started here: one of 1..101 by chance, and never the environment's.

    A recorded drive must not reach the robot that this shell talks to, nor a detector that runs there.
    """
    return random.SystemRandom().choice([domain for domain in range(1, 102) if domain != shared_domain()])


def shared_domain() -> int:
    """The ROS domain of everything that was started in this environment.

    Raises:
        DetectorProcessError: it is no number.
    """
    given = os.environ.get("ROS_DOMAIN_ID") or "0"
    if not given.isascii() or not given.isdigit():
        raise DetectorProcessError(f"ROS_DOMAIN_ID={given} is no number: it must be 0 to 101 on most machines")
    return int(given)


class DetectorProcess:
    """Starts the node; a context manager that ends it.

    Args:
        settings: parameters of the node.
        domain: ROS_DOMAIN_ID.
        arguments: more ROS arguments, for example ["-r", "image:=/camera/image"].
        environment: variables beside those of this process.
        log: file for its output; None = a temporary one.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        domain: int,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vl4ad-")
        self.log_file = log or Path(self._folder.name) / "detector.log"
        command = [sys.executable, "-m", "vl4ad_ros.detector_node", "--ros-args"]
        if settings:
            file = Path(self._folder.name) / "parameters.yaml"
            file.write_text(parameters.section("/**", settings), encoding="utf-8")
            command += ["--params-file", str(file)]
        variables = {**os.environ, "ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1", **(environment or {})}
        variables[END_WITH_PARENT] = str(os.getpid())
        variables.update(transport.large_image_environment(variables))
        # Run from a source tree the child needs its path as well.
        variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), variables.get("PYTHONPATH", "")])
        with open(self.log_file, "wb") as stream:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
            )

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_until_said(self, text: str, timeout: float, hint: str = "") -> None:
        """Wait for a text in its log.

        Args:
            hint: what to do where the time is over.

        Raises:
            DetectorProcessError: it ended, or the time is over.
        """
        deadline = time.monotonic() + timeout
        while text not in self.log:
            if self.process.poll() is not None and text not in self.log:
                self.check()
            if time.monotonic() > deadline:
                raise DetectorProcessError(f"the detector did not say '{text}' within {timeout:.0f} s{hint}: {self._last_words()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            DetectorProcessError: it ended.
        """
        status = self.process.poll()
        if status is None:
            return
        how = f"was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with status {status}"
        raise DetectorProcessError(f"the detector {how}: {self._last_words()}")

    def wait_until_active(self, timeout: float = 180.0) -> None:
        """Wait until images can come.

        Raises:
            DetectorProcessError: it ended, or the time is over.
        """
        self.wait_until_said(READY, timeout, " (a model that must be downloaded first: vl4ad models fetch NAME)")

    def _last_words(self) -> str:
        return " / ".join(self.log.strip().splitlines()[-3:]) or "it said nothing"

    def stop(self, number: int = signal.SIGINT, timeout: float = 10.0) -> float:
        """Ask it to end, and make it if it does not.

        Returns:
            seconds until it had ended.
        """
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return time.monotonic() - began

    def memory_mb(self) -> float:
        """Resident memory (Linux), without the segments through which images are shared: those fill up to their size."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:"))) / 1024

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> DetectorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()
