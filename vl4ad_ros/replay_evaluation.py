"""Evaluate the running detector: play a bag into it, match its scores to labels by stamp, report metrics and latency.

    ros2 run vl4ad_ros replay_evaluation drive --lossless --json live.json
    ros2 run vl4ad_ros replay_evaluation drive --rate 1.0 --attach --report out/live

Lossless: the next image is sent when the last one is answered, so that every frame is scored and the metrics equal those of
`vl4ad evaluate bag`. At a rate, images are sent as they were recorded, the detector drops what it cannot keep up with as it does on
the road, and the metrics are over the frames that were answered.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vl4ad_model.cli import TERMINATED, hear_sigterm
from vl4ad_model.engines import ENGINES
from vl4ad_model.errors import EvaluationError, Vl4adError
from vl4ad_model.evaluation import bags, commands, runner
from vl4ad_model.evaluation.component_metrics import TRACKS
from vl4ad_model.evaluation.frame_counts import METRICS
from vl4ad_model.evaluation.options import words
from vl4ad_model.evaluation.outputs import check_report, check_writable
from vl4ad_model.evaluation.sources import Entry, Frame, FrameFailure
from vl4ad_ros.parameters import prompts_from

SCORE, LABELS = "anomaly_score", "segmentation"


@dataclass(frozen=True)
class LiveSource:
    """What the detector answered, as a source of frames; labels come from the bag.

    Attributes:
        bag: the recording.
        answers: files with scores and class ids by the stamp of the image, nanoseconds.
        unreadable: stamps of images that could not be sent: frames that failed.
    """

    bag: bags.BagSource
    answers: Mapping[int, Path] = field(repr=False)
    unreadable: frozenset[int] = frozenset()

    def entries(self) -> list[Entry]:
        tried = self.answers.keys() | self.unreadable
        return [entry for entry in self.bag.entries() if entry.failure or _stamp(entry, self.bag) in tried]

    def frames(self, entries: Sequence[Entry], *, pictures: bool = True) -> Iterator[Frame | FrameFailure]:
        for entry, frame in zip(entries, self.bag.frames(entries, pictures=pictures), strict=True):
            if isinstance(frame, FrameFailure):
                yield frame
                continue
            if _stamp(entry, self.bag) not in self.answers:
                yield FrameFailure(entry.name, f"{entry.name}: the image could not be sent")
                continue
            with np.load(self.answers[_stamp(entry, self.bag)], allow_pickle=False) as stored:
                scores, predicted = stored["scores"], stored["labels"]
            if frame.labels is not None and scores.shape != frame.labels.anomaly.shape:
                size = f"{scores.shape[1]}x{scores.shape[0]}"
                yield FrameFailure(entry.name, f"{entry.name}: the detector publishes {size}: set publish_resolution to input")
                continue
            yield frame._replace(scores=scores, predicted=predicted)

    def describe(self) -> dict[str, Any]:
        return self.bag.describe()


def _stamp(entry: Entry, bag: bags.BagSource) -> int:
    return next(stamp for topic, stamp, _ in entry.key if topic == bag.image_topic)


@dataclass
class Replay:
    """What happened while the bag was played.

    Attributes:
        sent, answered: images sent, and those with a score.
        seconds: from the first image to the last answer.
        latencies: seconds from sending an image to its score, one per answer.
        answers, unreadable: see `LiveSource`.
    """

    sent: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: dict[int, Path] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Latency percentiles in milliseconds, drops and throughput."""
        latencies = np.array(self.latencies) * 1e3
        percentiles = np.percentile(latencies, (50, 95, 99)).tolist() if latencies.size else [float("nan")] * 3
        return {
            "sent": self.sent,
            "answered": len(self.latencies),
            "dropped": self.sent - len(self.latencies),
            "throughput_hz": len(self.latencies) / self.seconds if self.seconds > 0 else float("nan"),
            "latency_ms": dict(zip(("p50", "p95", "p99"), percentiles, strict=True)),
        }


def play(
    client: Any,
    source: bags.BagSource,
    folder: Path,
    *,
    rate: float | None,
    timeout: float,
    check: Callable[[], None] = lambda: None,
) -> Replay:
    """Play the labelled images of a bag.

    Args:
        client: a connected `DetectorClient` with the topics anomaly_score and segmentation.
        source: the bag.
        folder: for the answers, 5 bytes per pixel each.
        rate: of the recording's own speed; None = lossless.
        timeout: seconds to wait for an answer; at a rate, for those that come after the last image was sent.
        check: called again and again; raises where no answer can come any more.

    Raises:
        EvaluationError: lossless, and an image was not answered in time.
    """
    from vl4ad_ros.detector_client import pixels

    entries = [entry for entry in source.entries() if not entry.failure]
    if not entries:
        raise EvaluationError(f"{source.path}: no image has a label")
    replay = Replay()
    sent_at: dict[tuple[int, int], float] = {}

    def collect() -> int:
        """Move what came from the client to the replay; how many answers there are."""
        for stamp, (score, label) in client.take(SCORE, LABELS).items():
            if stamp not in sent_at:
                continue  # somebody else's image
            replay.latencies.append(score.when - sent_at[stamp])
            path = folder / f"{stamp[0]}.{stamp[1]:09}.npz"
            np.savez(path, scores=pixels(score.message), labels=pixels(label.message))
            replay.answers[stamp[0] * 10**9 + stamp[1]] = path
        return len(replay.latencies)

    began = time.monotonic()
    first = _stamp(entries[0], source)
    for entry, message in zip(entries, _images(source, entries, check=rate is None), strict=True):
        stamp = _stamp(entry, source)
        if isinstance(message, Vl4adError):  # a frame that failed, as in `vl4ad evaluate bag`
            replay.unreadable[stamp] = f"{entry.name}: {message}"
            continue
        if rate is not None:
            time.sleep(max(0.0, began + (stamp - first) * 1e-9 / rate - time.monotonic()))
        key = (stamp // 10**9, stamp % 10**9)
        check()
        sent_at[key] = time.time()
        client.send_message(message)
        replay.sent += 1
        if rate is None:
            late = time.monotonic() + timeout
            while collect() < replay.sent and time.monotonic() < late:
                client.wait_for(lambda seen, key=key: key in seen.outputs[SCORE] and key in seen.outputs[LABELS], 1.0)
                check()
            if len(replay.latencies) < replay.sent:
                raise EvaluationError(
                    f"{entry.name}: no answer within {timeout:g} s: is the detector active, and the image readable?"
                )
        else:
            collect()
        replay.seconds = time.monotonic() - began
    if rate is not None:
        # The detector works on the newest image only, and answers in order: after the last one nothing comes.
        quiet, known = time.monotonic(), -1
        last = max((sec * 10**9 + nanosec for sec, nanosec in sent_at), default=None)
        while True:
            if collect() > known:
                known, quiet = len(replay.latencies), time.monotonic()
                replay.seconds = quiet - began
            if last is None or last in replay.answers or time.monotonic() - quiet > timeout:
                break
            check()
            time.sleep(0.02)
    return replay


def _images(source: bags.BagSource, entries: Sequence[Entry], *, check: bool) -> Iterator[Any]:
    """The recorded messages as ROS messages, bit for bit, or why one cannot be; `check` = whether its picture can be decoded."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import CompressedImage, Image

    topic = source.image_topic or ""
    keys = [[part for part in entry.key if part[0] == topic] for entry in entries]
    for messages in bags.raw_messages_or_errors(source.path, keys):
        try:
            if isinstance(messages, Vl4adError):
                raise messages
            message = bags.decoded(messages)[topic]
            if check:
                bags.decode_image(message)
        except Vl4adError as error:
            yield error
            continue
        kind, raw = messages[topic]
        yield deserialize_message(bytes(raw), CompressedImage if kind == bags.COMPRESSED else Image)


def is_compressed(source: bags.BagSource) -> bool:
    """Whether the bag's images are CompressedImage."""
    return bags.topic_kind(source.path, source.image_topic or "") == bags.COMPRESSED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="replay_evaluation",
        description="Play a bag into the running detector and report its metrics and its latency.",
    )
    add = parser.add_argument
    add("bag", type=Path, help="rosbag2 recording with images and labels: a folder, a .mcap or a .db3 file")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--rate", type=float, help="play at so many times the recording's own speed and let the detector drop; 1.0 = as on the road"
    )
    speed.add_argument("--lossless", action="store_true", help="wait for every answer, as without --rate")
    add("--attach", action="store_true", help="use a detector that runs already instead of starting one")
    add("--image", default="/image", help="topic the detector listens to (%(default)s)")
    add("--image-topic", help="image topic of the bag; detected automatically if there is only one candidate")
    add("--label-topic", help="label topic of the bag; detected automatically if there is only one candidate")
    add("--label-values", default="auto", choices=("auto", "anomaly", "classes"), help="what the labels' values mean (%(default)s)")
    add("--tolerance", type=float, default=0.0, help="seconds the stamps of an image and its label may differ (%(default)s)")
    add("--track", default="anomaly", help=f"size limits of components: {' or '.join(TRACKS)} (%(default)s)")
    add("--metrics", default=",".join(METRICS), help="what to compute (%(default)s)")
    add("--threshold", type=float, help="score threshold for the components; default: the one with the best F1")
    add("--hazard", action="append", default=[], help="words for the detector that is started here; repeat for more")
    add("--model", default="tiny", help="of the detector that is started here (%(default)s)")
    add("--engine", default="auto", help=f"of the detector that is started here: {', '.join(ENGINES)} (%(default)s)")
    add("--timeout", type=float, default=60.0, help="seconds to wait for an answer (%(default)s)")
    add("--json", type=Path, dest="json_file", help="file for all numbers")
    add("--report", type=Path, help="folder for report.html, which needs no network")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Play, evaluate, write; the exit status."""
    with contextlib.ExitStack() as scratch:
        return _run(options, scratch)


def _run(options: argparse.Namespace, scratch: contextlib.ExitStack) -> int:
    from vl4ad_ros.detector_client import DetectorClient
    from vl4ad_ros.detector_process import DetectorProcess, own_domain, shared_domain

    if options.rate is not None and not options.rate > 0:
        raise EvaluationError(f"a rate of {options.rate:g} plays nothing: it must be above 0")
    metrics = tuple(name.strip() for name in options.metrics.split(",") if name.strip())
    # Mistakes show here, before anything starts.
    if options.attach and (options.hazard or options.model != "tiny" or options.engine != "auto"):
        raise EvaluationError(
            "--attach uses a detector as it runs: --hazard, --model and --engine are for one that is started here"
        )
    runner.Settings(options.track, metrics, options.threshold)
    if options.json_file:
        check_writable(options.json_file, folder=False)
    if options.report:
        check_report(options.report)
    source = bags.open_bag(
        options.bag,
        image_topic=options.image_topic,
        label_topic=options.label_topic,
        label_values=options.label_values,
        tolerance=options.tolerance,
        hazard_names="naming" in metrics and bool(options.hazard),
    )
    source.names()
    for line in source.left_out():
        print(f"replay_evaluation: {line}", file=sys.stderr)
    compressed = is_compressed(source)
    domain = shared_domain() if options.attach else own_domain()
    with contextlib.ExitStack() as stack:
        detector: DetectorProcess | None = None
        if not options.attach:
            settings: dict[str, Any] = {"model": options.model, "engine": options.engine}
            if options.hazard:
                settings["hazard_prompts"] = options.hazard
            if compressed:
                settings["image_transport"] = "compressed"
            arguments = ["-r", f"image:={options.image}"]
            detector = stack.enter_context(DetectorProcess(settings, domain=domain, arguments=arguments))
            print(f"starting the detector with model {options.model}", file=sys.stderr)
            detector.wait_until_active()
        client = stack.enter_context(
            DetectorClient(
                domain=domain,
                topics=(SCORE, LABELS),
                image_topic=options.image,
                compressed=compressed,
                node_name="replay_evaluation",
            )
        )
        if options.attach:
            print(f"waiting for a detector that listens to {options.image}", file=sys.stderr)
        client.wait_until_connected()
        status = client.wait_until_built(say=lambda text: print(text, file=sys.stderr))
        client.check_alone()  # by now everybody has been heard of
        names = ("model", "engine", "hazard_prompts", "merge_classes", "classifier", "scoring")
        asked = {name: client.get_parameter(name) for name in names}
        model = _model_settings(asked)
        ignore_mask = client.get_parameter("ignore_mask").replace("{camera}", "") or None  # it has one camera, without a name
        vocabulary_file = client.get_parameter("vocabulary_file") or None
        vocabulary = words(
            runner.ModelSettings(vocabulary=vocabulary_file, hazards=tuple(model["hazards"]), ignore_mask=ignore_mask)
        )
        class_names = vocabulary.names[: vocabulary.known_count]
        settings_ = runner.Settings(
            options.track, metrics, options.threshold, None, class_names, vocabulary.hazards, ignore_mask=ignore_mask
        )
        source = replace(source, class_count=len(settings_.class_names), hazard_names=settings_.judges_names)
        print(f"playing {options.bag}", file=sys.stderr)
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="vl4ad-replay-")))
        check = client.check_connected if detector is None else detector.check
        replay = play(client, source, folder, rate=options.rate, timeout=options.timeout, check=check)
        check()
    if not replay.answers:
        why = next(iter(replay.unreadable.values()), "the detector answered no image: is it active?")
        raise EvaluationError(why)
    configuration = {
        "source": "live",
        "bags": [source.describe()],
        "model": model,
        "detector": {name: status[name] for name in ("engine", "engine reason", "device", "precision") if name in status},
        "speed": "lossless" if options.rate is None else f"{options.rate:g} x",
    }
    if ignore_mask:
        configuration["ignore_mask"] = ignore_mask
    if "UNTRAINED" in status.get("model notice", ""):
        configuration["notice"] = status["model notice"]
    summary = replay.summary()
    return commands.finish_live(
        LiveSource(source, replay.answers, frozenset(replay.unreadable)),
        settings_,
        configuration,
        summary,
        options.json_file,
        options.report,
    )


def _model_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {**asked, "hazards": list(prompts_from(asked["hazard_prompts"]))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `replay_evaluation` executable."""
    hear_sigterm()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--ros-args" in words:  # launch files add them
        words = words[: words.index("--ros-args")]
    try:
        sys.exit(run(parse(words)))
    except Vl4adError as error:
        print(f"replay_evaluation: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no room, no permission
        where = f"{error.filename}: " if error.filename else ""
        print(f"replay_evaluation: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("replay_evaluation: terminated, no result was written", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("replay_evaluation: interrupted, no result was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
