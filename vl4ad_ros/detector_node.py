"""The lifecycle node `vl4ad_detector`: wiring between ROS, the newest-frame worker and the segmenter."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    import rclpy
    from builtin_interfaces.msg import Time
    from rcl_interfaces.msg import SetParametersResult
    from rclpy.clock import Clock, ClockType
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
    from rclpy.parameter import Parameter
    from rclpy.utilities import get_rmw_implementation_identifier
    from std_srvs.srv import Trigger

    from vl4ad_ros import diagnostics, images, parameters
    from vl4ad_ros.inputs import CameraInput
    from vl4ad_ros.outputs import CameraOutputs, LabelOutputs, Limits
except ImportError as error:
    print(
        f"vl4ad_ros: {error}. Source a ROS 2 installation (source /opt/ros/.../setup.bash) in this shell, "
        "or, where there is none: pip install 'vl4ad_ros[ros,model]'",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from vl4ad_model.errors import ImageError, Vl4adError
from vl4ad_ros import transport
from vl4ad_ros.detector_process import end_with_parent
from vl4ad_ros.worker import LatestJob, NewestFrameWorker

if TYPE_CHECKING:
    from vl4ad_model.engines.base import BuildProgress
    from vl4ad_model.ignore_mask import IgnoreMask
    from vl4ad_model.segmenter import Segmenter, Words
    from vl4ad_model.vocabulary import Vocabulary

NODE_NAME = "vl4ad_detector"
GRACE_SECONDS = 1.0
"""How long a frame or a model that is being loaded may take when the process is asked to end."""
USER_ERROR = 2
NO_CLOCK = "use_sim_time is set but nothing publishes /clock, so image ages are unknown (play bags with 'ros2 bag play --clock')"


class _Threshold(NamedTuple):
    """Of the anomaly mask; frames of words older than those it was set with keep the one before."""

    value: float
    from_version: int = 0
    before: float = 0.0

    def for_version(self, version: int) -> float:
        return self.value if version >= self.from_version else self.before


class DetectorNode(LifecycleNode):
    """Subscribes to cameras, publishes labels and anomaly; see docs/ros.md for topics and parameters.

    Threads: the executor's (everything of ROS), `parallel_images` for inference, one that encodes new words.

    Raises:
        ParameterError: a parameter given at start is not usable.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(NODE_NAME, **arguments)
        parameters.declare(self)
        self.settings = parameters.settings_from(parameters.values_of(self))
        for complaint in (
            *parameters.unknown_at_start(self),
            *parameters.files_for_others(sys.argv, self.get_fully_qualified_name()),
        ):
            self.get_logger().warning(complaint)
        if advice := transport.socket_advice(get_rmw_implementation_identifier(), transport.socket_limit()):
            self.get_logger().warning(advice)
        self.cameras = self.settings.cameras or ("",)
        self._numbers = {camera: itertools.count(1) for camera in self.cameras}  # no two things of this process have the same
        self.load_problem = ""
        self.add_pre_set_parameters_callback(parameters.normalized)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._throttle = diagnostics.Throttle()
        self._last_error = ""
        self._segmenter: Segmenter | None = None
        self._first_version = 1  # of the words: they go on being counted when the node is configured again
        self._loader: threading.Thread | None = None
        self._worker: NewestFrameWorker | None = None
        self._words: LatestJob | None = None
        self._checked: tuple[parameters.Settings, Vocabulary] | None = None
        # The file as it was last read, and its name: an editor that is not done must not keep other words from changing.
        self._file: tuple[str, Vocabulary] | None = None
        self._threshold = _Threshold(self.settings.anomaly_threshold)
        self._threshold_change = threading.Lock()  # the executor's thread and the one that encodes words both set it
        self._ignored: dict[str, IgnoreMask] = {}
        self._new_ignored: dict[str, IgnoreMask] = {}  # those of a change that is being checked
        self._encoding = ""  # how far the encoding of new words is
        self._unused_words = ""  # why the words that the parameters say could not be taken over
        self._inputs: list[CameraInput] = []
        self._outputs: dict[str, CameraOutputs] = {}
        self._labels: LabelOutputs | None = None
        self._statistics = {camera: diagnostics.CameraStatistics() for camera in self.cameras}
        self._last_stamp: dict[str, Time | None] = dict.fromkeys(self.cameras)
        self._active = False
        self._activations = 0  # an image that was taken before a deactivation is not published after it
        # Held while publishing: nothing is published once deactivation has returned.
        self._publishing = threading.Lock()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # By a clock of its own: simulated time may stand still, and that has to be said too.
        self.create_timer(1.0, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(Trigger, "~/reload_vocabulary", self._reload_vocabulary)

    # --- lifecycle --------------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("configure", self._configure, super().on_configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # Publishers first: the labels are the first thing that goes out.
        return self._guarded("activate", lambda: None, super().on_activate, state, then=self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("deactivate", self._deactivate, super().on_deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("cleanup", self._release, super().on_cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("shutdown", self._release, super().on_shutdown, state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("error processing", self._release, super().on_error, state)

    def _guarded(
        self,
        what: str,
        action: Callable[[], None],
        managed: Callable[[LifecycleState], TransitionCallbackReturn],
        state: LifecycleState,
        then: Callable[[], None] = lambda: None,
    ) -> TransitionCallbackReturn:
        """rclpy swallows exceptions of transitions; here they are said: a user's mistake in one line, ours with its traceback."""
        try:
            action()
            result = managed(state)
            if result == TransitionCallbackReturn.SUCCESS:
                then()
            return result
        except Vl4adError as error:
            self.load_problem = self._last_error = str(error)
            if self.context.ok():
                self.get_logger().error(f"cannot {what}: {error}")
            else:  # where the logger's topic is gone, it complains
                print(f"vl4ad_detector: cannot {what}: {error}", file=sys.stderr)
            if what == "configure":
                self._release()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.load_problem = self._last_error = f"{type(error).__name__}: {error}"
            self.get_logger().error(f"cannot {what}: {traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    def _configure(self) -> None:
        self.load_problem = ""
        began = time.monotonic()
        settings = self.settings
        self._ignore(settings.read_ignore_masks())
        self.get_logger().info(f"loading model {settings.model}")
        segmenter = self._load(settings)
        self._segmenter, self._unused_words = segmenter, ""
        self._threshold = _Threshold(settings.anomaly_threshold)
        self._last_stamp = dict.fromkeys(self.cameras)
        self._labels = LabelOutputs(self)
        self._outputs = {camera: CameraOutputs(self, camera, self._numbers[camera]) for camera in self.cameras}
        self._words = LatestJob(on_error=self._words_failed)
        self._worker = NewestFrameWorker(
            self._process,
            on_error=self._frame_failed,
            on_wake=lambda admitted: self._announce(admitted[1]),
            admit=lambda message: (message, segmenter.words),
            threads=settings.parallel_images,
        )
        self._worker.limit_rate(settings.max_rate)
        self._worker.start()
        self.get_logger().info(
            f"{segmenter.notice or segmenter.model_name}; engine {segmenter.engine_name} on {segmenter.device} "
            f"({segmenter.engine_reason}); loaded in {time.monotonic() - began:.1f} s"
        )
        self._say_unknown_words(segmenter)

    def _say_unknown_words(self, segmenter: Segmenter) -> None:
        if segmenter.unknown_words:
            if segmenter.words.unrelated:
                self.get_logger().warning(f"{segmenter.unknown_words:.500}")
            else:
                self.get_logger().info(f"{segmenter.unknown_words:.500}")

    def _load(self, settings: parameters.Settings) -> Segmenter:
        """Load the model in a thread, so that the process can end, and tell, while it lasts."""
        outcome: list[Any] = []

        def load() -> None:
            try:
                of_file = settings.read_vocabulary()
                vocabulary = of_file.adding_hazards(settings.hazard_prompts)
                from vl4ad_model.segmenter import Segmenter

                segmenter = Segmenter.load(
                    settings.model,
                    device=settings.device,
                    engine=settings.engine,
                    precision=settings.precision,
                    network_size=settings.network_size,
                    vocabulary=vocabulary,
                    classifier=settings.classifier_or_none,
                    merge_classes=settings.merge_classes,
                    scoring=settings.scoring_or_none,
                    background=True,
                    parallel=settings.parallel_images,
                    first_version=self._first_version,
                    progress=self._build_progress,
                    words_progress=self._encoding_progress,
                )
                if segmenter.network_size is not None:
                    import numpy as np

                    # The first image takes several times as long as the others: better here than when it counts.
                    segmenter.segment(np.full((*segmenter.network_size, 3), 127, np.uint8))
                self._file = settings.vocabulary_file, of_file
                outcome.append(segmenter)
            except ModuleNotFoundError as error:
                outcome.append(Vl4adError(f"the package '{error.name}' is not installed: pip install 'vl4ad_ros[model]'"))
            except Exception as error:
                outcome.append(error)

        self._loader = threading.Thread(target=load, name="model loading", daemon=True)
        self._loader.start()
        told = time.monotonic()
        while self._loader.is_alive():
            self._loader.join(0.05)
            if not self.context.ok():
                raise Vl4adError("shutdown requested while the model was loading")
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                doing = f"loading model {settings.model}" + (f", words encoded: {self._encoding}" if self._encoding else "")
                self._publish_diagnostics([self._node_status(DiagnosticStatus.WARN, doing)])
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _encoding_progress(self, done: int, total: int) -> None:
        """From the thread that encodes words."""
        self._encoding = f"{done} of {total}" if done < total else ""

    def _build_progress(self, progress: BuildProgress) -> None:
        """From the thread that builds an engine, while PyTorch serves."""
        with contextlib.suppress(Exception):  # the context may go down at any time
            if progress.fraction >= 1:
                self.get_logger().info(f"{progress.engine} is ready after {progress.elapsed_s:.0f} s and takes over")
            elif self._throttle.allows(f"{progress.engine} {progress.stage}"):
                self.get_logger().info(f"{progress}; PyTorch answers images meanwhile")

    def _activate(self) -> None:
        assert self._worker is not None and self._labels is not None
        self._statistics = {camera: diagnostics.CameraStatistics() for camera in self.cameras}
        self._labels.forget()
        self._activations += 1
        self._active = True
        if self._segmenter is not None:
            self._announce(self._segmenter.words)
        self._inputs = [
            CameraInput(self, camera, self.settings, self._receive, self._statistics[camera].lost_some) for camera in self.cameras
        ]
        self.get_logger().info(f"{self.get_name()} is active, listening to {', '.join(entry.topic for entry in self._inputs)}")

    def _deactivate(self) -> None:
        for entry in self._inputs:
            entry.destroy()
        self._inputs = []
        if self._worker is not None:
            self._worker.clear()
        with self._publishing:
            self._active = False

    def _release(self) -> None:
        """Give everything back that `_configure` and `_activate` made, however far they came."""
        self._deactivate()
        if self._words is not None:
            self._words.stop(None if self.context.ok() else GRACE_SECONDS)
        if self._worker is not None:
            # Nobody may use the segmenter any more when it is closed; a frame is waited for, but not at the process's end.
            self._worker.stop(None if self.context.ok() else GRACE_SECONDS)
        for outputs in self._outputs.values():
            outputs.destroy()
        if self._labels is not None:
            self._labels.destroy()
        if self._segmenter is not None:
            self._first_version = self._segmenter.vocabulary_version + 1
            if self._worker is None or not self._worker.alive:
                self._segmenter.close()
        self._outputs, self._labels, self._segmenter, self._words, self._worker = {}, None, None, None, None
        gc.collect()
        transport.return_free_memory()

    def stop_threads(self) -> None:
        """End this node's threads, waiting for a short time only."""
        deadline = time.monotonic() + GRACE_SECONDS
        self._active = False
        for worker in (self._worker, self._words):
            if worker is not None:
                worker.stop(max(0.05, deadline - time.monotonic()))

    def destroy_node(self) -> None:
        super().destroy_node()
        # rclpy leaves the state machine of a lifecycle node, and with it the node's DDS participant: the process would end
        # without taking back its 70 MB of /dev/shm.
        machine = getattr(self, "_state_machine", None)
        if machine is not None:
            machine.destroy_when_not_in_use()

    # --- frames -----------------------------------------------------------------------------------------------------------

    def _receive(self, camera: str, message: Any) -> None:
        """In the executor's thread: hand the image over and return."""
        self._statistics[camera].arrived()
        if self._worker is not None:
            self._worker.offer(camera, message)

    def _process(self, camera: str, admitted: tuple[Any, Words]) -> None:
        """In a worker's thread: one image from its bytes to its published maps; whatever goes wrong is this image's.

        Args:
            admitted: the message, and the words as they were when it was taken.
        """
        try:
            self._answer(camera, *admitted)
        except Exception as error:
            self._frame_failed(error, camera)

    def _answer(self, camera: str, message: Any, words: Words) -> None:
        segmenter, worker = self._segmenter, self._worker
        outputs, statistics = self._outputs.get(camera), self._statistics[camera]
        if segmenter is None or worker is None or outputs is None:
            return
        settings, activation = self.settings, self._activations
        wanted = outputs.wanted()
        if not wanted:
            statistics.not_wanted()
            return
        started = time.perf_counter()
        try:
            rgb = images.to_rgb(message)
            decoded = time.perf_counter()
            result = segmenter.segment(rgb, output_size=settings.publish_resolution, words=words)
            stages = {"decode": decoded - started, **result.seconds}
            if ignored := self._ignored.get(camera):
                began = time.perf_counter()
                if complaint := ignored.complaint(rgb.shape[:2]):
                    self._complain(camera, complaint)
                ignored.paint_out(result)  # its maps were made for this image alone
                stages["ignore"] = time.perf_counter() - began
        except ImageError as error:
            self._reject(camera, str(error))
            return
        segmented = time.perf_counter()
        threshold = self._threshold.for_version(result.vocabulary_version)
        limits = Limits(threshold, settings.min_hazard_area, settings.void_anomalies)
        answer = outputs.encode(wanted, rgb, result, message.header, limits)
        encoded = time.perf_counter()
        stamp = message.header.stamp
        # In the order in which images were taken: a younger one may have been faster.
        worker.await_turn()
        with self._publishing:
            in_turn = time.perf_counter()
            if activation != self._activations or not self._active:
                return
            if limits.threshold != (now := self._threshold.for_version(result.vocabulary_version)):
                # LabelInfo says the new one by now.
                answer = outputs.encode(wanted, rgb, result, message.header, limits._replace(threshold=now))
            self._follow_clock(camera, stamp)
            self._announce_version(result.vocabulary, result.vocabulary_version)
            outputs.publish(wanted, answer, settings.min_hazard_images)
            self._last_stamp[camera] = stamp
        published = time.perf_counter()
        age = None
        if not (stamp.sec or stamp.nanosec):
            self._complain(camera, "the header has no stamp: latency is unknown and outputs cannot be matched to images")
        elif self._time_runs():
            age = self.get_clock().now().nanoseconds * 1e-9 - (stamp.sec + stamp.nanosec * 1e-9)
        stages |= {"encode": encoded - segmented, "publish": published - in_turn}
        kind = getattr(message, "encoding", "") or getattr(message, "format", "")
        statistics.published_one(age, stages, f"{rgb.shape[1]}x{rgb.shape[0]} {kind}")

    def _reject(self, camera: str, reason: str) -> None:
        self._statistics[camera].rejected(reason)
        self._complain(camera, f"image rejected: {reason}")

    def _complain(self, camera: str, text: str) -> None:
        title = f"camera {camera}: " if camera else ""
        if self._throttle.allows(title + _cause(text)):
            self.get_logger().warning(f"{title}{text} (repeats are not logged for {diagnostics.REPEAT_SECONDS:.0f} s)")

    def _frame_failed(self, error: Exception, camera: str | None = None) -> None:
        if not self.context.ok():
            return
        self._last_error = f"{type(error).__name__}: {error}"
        if camera is not None:
            self._statistics[camera].frame_failed(" ".join(self._last_error.split()))
        if self._throttle.allows(_cause(self._last_error)):
            detail = str(error) if isinstance(error, Vl4adError) else "".join(traceback.format_exception(error))
            self.get_logger().error(f"an image could not be processed: {detail}")

    # --- words ------------------------------------------------------------------------------------------------------------

    def _announce(self, words: Words) -> None:
        """Say what the labels mean as soon as the words change, even if no image comes."""
        if self._active:
            with self._publishing:
                if self._active:
                    self._announce_version(words.vocabulary, words.version)

    def _announce_version(self, vocabulary: Any, version: int) -> None:
        if self._labels is not None and self._segmenter is not None:
            self._labels.announce(
                vocabulary,
                version,
                model=self._segmenter.model_name,
                threshold=self._threshold.for_version(version),
                after=self._last_stamp,
            )

    def _follow_clock(self, camera: str, stamp: Time) -> None:
        """A camera whose stamps go back, as those of a bag that is looped, has later stamps of older words."""
        last = self._last_stamp[camera]
        if last is not None and (stamp.sec, stamp.nanosec) < (last.sec, last.nanosec):
            self._last_stamp[camera] = None
            if self._labels is not None:
                self._labels.begin_again(camera)

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Refuse with a reason; nothing is changed here."""
        self._checked = None
        checked = None
        try:
            for parameter in changes:
                if parameter.name in parameters.BY_NAME and parameter.type_ == Parameter.Type.NOT_SET:
                    raise parameters.ParameterError(f"{parameter.name} cannot be deleted")
            settings = parameters.changed(self.settings, {parameter.name: parameter.value for parameter in changes})
            named = {parameter.name for parameter in changes}
            if "vocabulary_file" in named or not settings.same_words(self.settings):
                # A file that is named is read, also where it is the same as before: it may say something else by now.
                of_file = settings.read_vocabulary() if "vocabulary_file" in named else self._vocabulary_of_file(settings)
                vocabulary = of_file.adding_hazards(settings.hazard_prompts)
                if self._segmenter is not None:
                    self._segmenter.check_words(vocabulary, settings.classifier_or_none)
                checked = settings, of_file
            if "ignore_mask" in named:
                self._new_ignored = settings.read_ignore_masks()  # likewise
        except Vl4adError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:  # an exception of a callback would end the node
            return SetParametersResult(successful=False, reason=f"{type(error).__name__}: {error}")
        self._checked = checked
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        """Take over what `_check_parameters` let through."""
        old, self.settings = (
            self.settings,
            parameters.changed(self.settings, {parameter.name: parameter.value for parameter in changes}),
        )
        if self._worker is not None and self.settings.max_rate != old.max_rate:
            self._worker.limit_rate(self.settings.max_rate)
        if any(parameter.name == "ignore_mask" for parameter in changes):
            self._ignore(self._new_ignored)
        checked, self._checked = self._checked, None
        of_file = checked[1] if checked is not None and checked[0].same_words(self.settings) else None
        another = of_file is not None and self._file is not None and of_file != self._file[1]
        if not self.settings.same_words(old) or self._unused_words or another:
            self._change_words(of_file)
        elif self.settings.anomaly_threshold != old.anomaly_threshold:
            self._take_threshold()

    def _ignore(self, masks: dict[str, IgnoreMask]) -> None:
        self._ignored = masks
        if masks:
            shares = ", ".join(f"{mask.share:.0%} of the image ({mask.name})" for mask in masks.values())
            self.get_logger().info(f"ignored: {shares}")

    def _take_threshold(self) -> None:
        """At once, whatever the words."""
        with self._threshold_change:
            self._threshold = _Threshold(self.settings.anomaly_threshold)
        if self._worker is not None:
            self._worker.poke()  # LabelInfo says it, also while no image comes

    def _vocabulary_of_file(self, settings: parameters.Settings) -> Vocabulary:
        """What the file said when it was last read; read now only where another file is named."""
        known = self._file
        return known[1] if known is not None and known[0] == settings.vocabulary_file else settings.read_vocabulary()

    def _change_words(self, of_file: Vocabulary | None) -> None:
        """Encode new words beside the running images and swap them in as one.

        Args:
            of_file: what the file of the present settings said when it was checked; None = as it was last read.
        """
        segmenter, words, worker, settings = self._segmenter, self._words, self._worker, self.settings
        if segmenter is None or words is None or worker is None:
            return
        if of_file is not None:  # here and not in the job, which newer words may replace before it begins
            self._file = settings.vocabulary_file, of_file

        def change() -> None:
            # One that was set together with these words begins with the first frame that has them.
            upcoming = segmenter.words.version + 1
            with self._threshold_change:
                before = self._threshold.for_version(upcoming - 1)
                self._threshold = _Threshold(self.settings.anomaly_threshold, upcoming, before)
            words_of_file = self._vocabulary_of_file(settings) if of_file is None else of_file
            version = segmenter.reconfigure(
                vocabulary=words_of_file.adding_hazards(settings.hazard_prompts),
                classifier=settings.classifier_or_none or segmenter.default_classifier,
                merge_classes=settings.merge_classes,
                scoring=settings.scoring_or_none or segmenter.default_scoring,
            )
            self._unused_words = ""
            hazards = ", ".join(f"'{hazard.prompt}'" for hazard in segmenter.vocabulary.hazards) or "none"
            self.get_logger().info(f"vocabulary version {version}: {segmenter.vocabulary.name}, hazards: {hazards:.500}")
            self._say_unknown_words(segmenter)
            worker.poke()

        words.submit(change)

    def _words_failed(self, error: Exception) -> None:
        self._last_error, self._encoding = str(error), ""
        self._unused_words = " ".join(str(error).split()) or type(error).__name__
        self._take_threshold()
        self.get_logger().error(
            f"the new words cannot be used, the old ones stay: {error} (set them again, or call ~/reload_vocabulary)"
        )

    def _reload_vocabulary(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        del request
        try:
            of_file = self.settings.read_vocabulary()
            vocabulary = of_file.adding_hazards(self.settings.hazard_prompts)
            if self._segmenter is not None:
                self._segmenter.check_words(vocabulary)
        except Exception as error:  # one that left a callback would end the node
            self._last_error = str(error) if isinstance(error, Vl4adError) else f"{type(error).__name__}: {error}"
            response.success, response.message = False, f"{self._last_error}; the old words stay"
            self.get_logger().warning(response.message)
            return response
        self._change_words(of_file)
        response.success = True
        response.message = f"{vocabulary.known_count} classes and {vocabulary.hazard_count} hazards of '{vocabulary.name}'"
        return response

    # --- diagnostics ------------------------------------------------------------------------------------------------------

    def _every_second(self) -> None:
        try:
            statuses = self._statuses()
        except Exception as error:  # one that left a callback would end the node
            self._last_error = f"{type(error).__name__}: {error}"
            if self._throttle.allows(_cause(self._last_error)):
                self.get_logger().error(f"the state cannot be told: {traceback.format_exc()}")
            said = " ".join(f"the state cannot be told: {self._last_error}".split())
            statuses = [diagnostics.status(f"{self._full_name}: detector", DiagnosticStatus.ERROR, said, {})]
        self._publish_diagnostics(statuses)

    def _statuses(self) -> list[DiagnosticStatus]:
        """Look after the inputs, and say how all goes."""
        problems = {entry.camera: entry.look_after() for entry in self._inputs}
        for camera, problem in problems.items():
            if problem:
                self._complain(camera, problem)
        if not self._time_runs():
            problems = {camera: problems.get(camera) or NO_CLOCK for camera in self.cameras}
            self._complain("", NO_CLOCK)
        statuses = [self._node_status()]
        worker = self._worker
        for camera in self.cameras if self._active and worker is not None else ():
            assert worker is not None
            counts = worker.counts(camera)
            statuses.append(
                diagnostics.camera_status(
                    f"{self._full_name}: {camera or 'camera'}",
                    self._statistics[camera].snapshot(),
                    {"received": counts.received, "dropped": counts.dropped, "limited": counts.limited},
                    problems.get(camera, ""),
                )
            )
        return statuses

    @property
    def _full_name(self) -> str:
        """With its namespace: /diagnostics is shared, and whoever reads it tells statuses apart by name."""
        return self.get_fully_qualified_name().lstrip("/")

    def _time_runs(self) -> bool:
        """False while simulated time is wanted and no clock has been heard."""
        return self.get_clock().now().nanoseconds != 0

    def _node_status(self, level: bytes = DiagnosticStatus.OK, message: str = "") -> DiagnosticStatus:
        segmenter = self._segmenter
        values: dict[str, object] = {"model": self.settings.model, "last error": self._last_error}
        if segmenter is not None:
            words, trouble = segmenter.words, segmenter.engine_trouble
            if trouble and level == DiagnosticStatus.OK:
                level, message = DiagnosticStatus.WARN, f"{segmenter.engine_name} serves: {trouble}"
            if self._unused_words and level == DiagnosticStatus.OK:
                level, message = DiagnosticStatus.WARN, f"the words that were set last are not in use: {self._unused_words}"
            if "UNTRAINED" in segmenter.notice and level == DiagnosticStatus.OK:
                level, message = DiagnosticStatus.WARN, segmenter.notice
            values |= {
                "model": segmenter.model_name,
                "model notice": segmenter.notice,
                "engine": segmenter.engine_name,
                "engine reason": segmenter.engine_reason,
                "engine build": segmenter.engine_progress or ("failed" if segmenter.engine_error else "done"),
                "device": segmenter.device,
                "precision": segmenter.precision,
                "ignored": ", ".join(f"{mask.share:.1%} ({mask.name})" for mask in self._ignored.values()),
                "network size": "x".join(map(str, segmenter.network_size or ())) or "as the image",
                "vocabulary": words.vocabulary.name,
                "vocabulary version": words.version,
                "hazards": ", ".join(hazard.prompt for hazard in words.vocabulary.hazards),
                "words being encoded": self._encoding,
                "words read as": words.related,
                "words not known": words.unrelated,
                "classifier": words.classifier_name,
                "classes merged": words.merge_classes,
                "scoring": words.scoring,
            }
        elif self.load_problem and level == DiagnosticStatus.OK:
            level, message = DiagnosticStatus.ERROR, self.load_problem
        state = "active" if self._active else "inactive" if segmenter is not None else "not configured"
        return diagnostics.status(f"{self._full_name}: detector", level, message or state, values)

    def _publish_diagnostics(self, statuses: list[DiagnosticStatus]) -> None:
        with contextlib.suppress(Exception):  # the context may go down at any time
            self._diagnostics.publish(diagnostics.array_of(statuses, self.get_clock().now().to_msg()))


def _cause(text: str) -> str:
    """A complaint without its numbers and quoted values: what makes two of them the same."""
    return re.sub(r"'[^']*'|\d+", "#", text)


def run(arguments: list[str] | None = None) -> int:
    """Run the node until it is asked to end.

    Args:
        arguments: as sys.argv, the program's name first; None = sys.argv.

    Returns:
        exit status: 0 after SIGINT or SIGTERM, 2 for a user's mistake.
    """
    transport.prepare_this_process()
    end_with_parent()
    # rclpy's own handlers end the context; Python's must not raise KeyboardInterrupt in the middle of that.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, lambda *_: None)
    node, status = None, 0
    try:
        own = _arguments_besides_ros((sys.argv if arguments is None else arguments)[1:])
        if {"-h", "--help"} & set(own):
            print(USAGE)
            return 0
        if own:
            print(f"vl4ad_detector: unknown argument '{own[0]}': parameters come after --ros-args (see --help)", file=sys.stderr)
            return USER_ERROR
        try:
            rclpy.init(args=arguments)
        except Exception as error:  # a parameter file or an argument that cannot be read; rclpy's exceptions differ by version
            print(f"vl4ad_detector: {' '.join(str(error).split())}", file=sys.stderr)
            return USER_ERROR
        try:
            node = DetectorNode()
        except (Vl4adError, rclpy.exceptions.ParameterException) as error:
            print(f"vl4ad_detector: {error}", file=sys.stderr)
            return USER_ERROR
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.settings.autostart and not _start(node) and rclpy.ok():
            status = USER_ERROR
        else:
            _spin(executor, node)
    except ExternalShutdownException:
        pass
    except Exception:
        # Asked to end in the middle of a transition: Jazzy's rclpy cannot publish that it ended, and raises.
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            # Threads that are still busy then (a frame, a model being loaded) find handles that say they are gone.
            node.stop_threads()
            with contextlib.suppress(Exception):
                node.destroy_node()
        rclpy.try_shutdown()
    return status


def _spin(executor: Any, node: DetectorNode) -> None:
    """What a callback of rclpy's own raises, such as for a parameter of a type that does not exist, does not end the node."""
    failed: deque[float] = deque(maxlen=20)
    while True:
        try:
            return executor.spin()
        except ExternalShutdownException:
            raise
        except Exception as error:
            failed.append(time.monotonic())
            if not rclpy.ok() or (len(failed) == failed.maxlen and failed[-1] - failed[0] < 2.0):
                raise
            node.get_logger().error(f"a request could not be answered: {type(error).__name__}: {error}")


USAGE = """usage: detector [--ros-args -p NAME:=VALUE ... -r image:=/your/topic ... --params-file FILE]

Finds what nobody trained for in camera images. Parameters and topics: docs/ros.md, config/detector.yaml, `ros2 param describe`."""


def _arguments_besides_ros(arguments: list[str]) -> list[str]:
    """Those outside of --ros-args ... --."""
    own, ros = [], False
    for argument in arguments:
        if argument == "--ros-args":
            ros = True
        elif ros:
            ros = argument != "--"
        else:
            own.append(argument)
    return own


def _start(node: DetectorNode) -> bool:
    success = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == success and node.trigger_activate() == success


def main() -> None:
    """Entry point of the `detector` executable."""
    status = run()
    sys.stdout.flush()
    sys.stderr.flush()
    # ROS has been left properly. What remains cannot be interrupted (a network in the middle of a frame, a model that is being
    # loaded) or takes seconds for nothing (torch tidying up memory that the system takes back anyway).
    os._exit(status)


if __name__ == "__main__":
    main()
