"""`make demo`: the real node, the recorded drive, and a hazard that is named while the images flow.

The drive is played twice without a pause, so that the same frames are seen before and after the change of words.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vl4ad_model.errors import EvaluationError, Vl4adError
from vl4ad_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vl4ad_ros.output_recording import RecordedMessage

HAZARDS = ["tyre|tire", "sofa|couch", "cardboard box", "ladder"]
TOPICS = ("segmentation", "anomaly_score")
NODE_STATUS = "vl4ad_detector: detector"
PATIENCE_SECONDS = 60.0
"""How long, for the old words and for the new ones, frames are asked for once more that were dropped during the drive."""


@dataclass
class Answer:
    """The node's outputs for one frame that was sent, and when they came."""

    index: int
    labels: np.ndarray
    anomaly: np.ndarray
    latency: float
    version: int


@dataclass
class Playback:
    """What was sent: per pass, stamp -> index of the frame; those asked for once more; and when the words were changed."""

    sent: list[dict[tuple[int, int], int]] = field(default_factory=list)
    asked_again: dict[tuple[int, int], int] = field(default_factory=dict)
    seconds: float = 0.0
    accepted: bool = False
    reason: str = ""
    words_seconds: float = float("nan")


@dataclass(frozen=True)
class HazardResult:
    """What naming changed for one kind of hazard: average precision of its pixels against ordinary ones, and names.

    Attributes:
        named, misnamed: share of its pixels that got its name, NaN where none was asked for, and that got another hazard's.
        never_trained: one of the types that the embedded model's training held out.
    """

    name: str
    pixels: int
    ap_before: float
    ap_after: float
    named: float
    misnamed: float
    never_trained: bool = False


@dataclass(frozen=True)
class Summary:
    """The demo's numbers. Latencies in ms, from a header's stamp to the arrival of the anomaly score; AP and FPR95 0..1.

    Attributes:
        named: share of the named hazards' pixels that have the right name, 0..1; types never trained on are left out.
        named_of_all: the same with those.
        names_right: share of the pixels that got a hazard's name that are that hazard.
        recording: the bag with all that was sent and received.
        recorded: its topics and their numbers of messages.
    """

    model: str
    engine: str
    frames_sent: int
    frames_answered: int
    frames_dropped: int
    rate_in: float
    rate_out: float
    latency_p50: float
    latency_p99: float
    words_changed_in_s: float
    prompts: list[str]
    compared: str
    ap_before: float
    ap_after: float
    fpr95_before: float
    fpr95_after: float
    hazards: list[HazardResult]
    named: float = float("nan")
    named_of_all: float = float("nan")
    names_right: float = float("nan")
    recording: str = ""
    recording_bytes: int = 0
    recorded: dict[str, int] = field(default_factory=dict)


def default_bag() -> Path:
    """The bag in the repository this is run from."""
    relative = Path("test/data/demo_bag")
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        if (root / relative).is_dir():
            return root / relative
    raise EvaluationError(f"no {relative} here: run it from the repository, or pass --bag")


def main(
    bag: Annotated[Path | None, typer.Option(help="Bag with a camera and its labels; none = the repository's.")] = None,
    hazard: Annotated[list[str] | None, typer.Option("--hazard", help="A hazard to name; repeat for more.")] = None,
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "tiny",
    engine: Annotated[str, typer.Option(help="auto, torch, onnx, openvino or tensorrt.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the page, the pictures and the numbers.")] = Path("out/demo"),
) -> None:
    """Run the detector on a recorded drive, name hazards half-way, and show what changed."""
    from rich.console import Console

    from vl4ad_ros import demo_page, demo_recording, output_recording
    from vl4ad_ros.detector_client import DetectorClient
    from vl4ad_ros.detector_process import DetectorProcess, own_domain

    console, prompts, domain = Console(), hazard or HAZARDS, own_domain()
    bag = bag or default_bag()
    console.print(f"[bold]VL4AD demo[/bold]: {bag}, ROS_DOMAIN_ID={domain}", highlight=False)
    recording = demo_recording.read_recording(bag)
    kept = out / "recording"
    output_recording.check_place(kept)
    settings = {
        "model": model,
        "engine": engine,
        "image_transport": "compressed" if recording.compressed else "raw",
    }
    topic = recording.image_topic.removesuffix("/compressed")
    client_settings: dict[str, Any] = {"image_topic": recording.image_topic, "compressed": recording.compressed, "topics": TOPICS}
    with DetectorProcess(settings, domain=domain, arguments=["-r", f"image:={topic}"]) as detector:
        with console.status("starting the detector"):
            detector.wait_until_active()
        with DetectorClient(domain=domain, **client_settings) as user:
            user.wait_until_connected()
            with console.status("building the engine (the first time only)"):
                user.wait_until_built()
            playback = play(user, recording, prompts, console, detector.check)
            user.wait_for(lambda c: c.diagnostics.get(NODE_STATUS, {}).get("engine"), timeout=5)
            node = dict(user.collected.diagnostics.get(NODE_STATUS, {}))
            answers = collect(user, playback)
            pairs = pairs_of(answers)
            missing = sorted(set(range(len(recording.frames))) - pairs[0].keys())
            if playback.accepted and missing:
                # Precision over whatever this machine happened to answer would be another number each time.
                with console.status(f"asking once more for the {len(missing)} frames that were not answered both times"):
                    again = ask_one_by_one(user, recording, playback, missing)
                pairs = {**again[0], **pairs[0]}, {**again[1], **pairs[1]}
            detector.check()
    if not playback.accepted:
        raise EvaluationError(f"the prompts were not taken: {playback.reason or 'the detector did not answer'}")
    with console.status("writing the recording"):
        # After the drive, so that its cost is in none of the numbers.
        counts = output_recording.write_bag(kept, recorded_messages(user, recording, playback))
    with console.status("comparing before and after"):
        summary, before, after = compare(recording, playback, answers, pairs, prompts, node)
        summary = replace(summary, recording=str(kept), recording_bytes=output_recording.size_of(kept), recorded=counts)
        page = demo_page.write(out, recording, summary, before, after)
        (out / "summary.json").write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    console.print(demo_page.table(summary, page))
    if not before or not after:
        raise EvaluationError("the detector answered no frame both before and after the change: this machine is too slow for it")


def play(user, recording, prompts: list[str], console, check: Callable[[], None]) -> Playback:
    """Send every frame at its own time, twice; when the second round begins, change the words from another thread.

    Args:
        check: called before every frame; raises where the detector is gone.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from vl4ad_ros.detector_client import deserialize_image

    result = Playback(sent=[{}, {}])

    def change_words() -> None:
        asked = time.monotonic()
        versions = {labels.content["version"] for labels in user.collected.labels}
        try:
            result.accepted, result.reason = user.set_parameter("hazard_prompts", prompts)
        except Vl4adError as error:  # the detector is gone or does not answer
            result.reason = str(error)
        if result.accepted and user.wait_for(lambda c: c.labels and c.labels[-1].content["version"] not in versions, timeout=30):
            result.words_seconds = time.monotonic() - asked

    changer = threading.Thread(target=change_words, daemon=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} frames"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("known classes only", total=2 * len(recording.frames))
        for round_number, (index, frame) in itertools.product(range(2), enumerate(recording.frames)):
            if round_number == 1 and index == 0:
                progress.update(task, description="hazards named")
                changer.start()
            due = began + round_number * recording.seconds + frame.seconds
            time.sleep(max(0.0, due - time.monotonic()))
            check()
            message = deserialize_image(frame.raw, frame.message_type)
            message.header.stamp = user.now()
            result.sent[round_number][user.send_message(message)] = index
            progress.advance(task)
        result.seconds = time.monotonic() - began
        changer.join(60)
        last = next(reversed(result.sent[1]))
        user.wait_for(lambda c: all(last in c.outputs[topic] for topic in TOPICS), timeout=5)
    return result


def collect(user, playback: Playback) -> list[list[Answer]]:
    """The answers of both rounds, in the order of their frames, each with the version of the words it was scored with."""
    from vl4ad_ros.detector_client import pixels

    starts = []
    for labels in user.collected.labels:
        after = labels.content["after"].get("")
        starts.append((labels.content["version"], (after["sec"], after["nanosec"]) if after else (0, 0)))
    rounds = []
    for sent in playback.sent:
        answers = []
        for stamp, index in sent.items():
            labels, scores = (user.collected.outputs[topic].get(stamp) for topic in TOPICS)
            if labels is None or scores is None:
                continue
            version = max((number for number, start in starts if stamp > start), default=0)
            latency = scores.when - (stamp[0] + stamp[1] * 1e-9)
            answers.append(Answer(index, pixels(labels.message), pixels(scores.message), latency, version))
        rounds.append(answers)
    return rounds


def recorded_messages(user, recording, playback: Playback) -> Iterator[RecordedMessage]:
    """What was sent and everything that came: images at their stamps, outputs and words at their arrival."""
    from std_msgs.msg import String

    from vl4ad_ros.detector_client import NODE, deserialize_image
    from vl4ad_ros.output_recording import RecordedMessage

    for sent in (*playback.sent, playback.asked_again):
        for stamp, index in sent.items():
            frame = recording.frames[index]
            message = deserialize_image(frame.raw, frame.message_type)
            message.header.stamp.sec, message.header.stamp.nanosec = stamp
            yield RecordedMessage(recording.image_topic, frame.message_type, stamp[0] * 10**9 + stamp[1], message)
    for topic, received in user.collected.outputs.items():
        for each in received.values():
            yield RecordedMessage(f"{NODE}/{topic}", "sensor_msgs/msg/Image", round(each.when * 1e9), each.message)
    for words in user.collected.labels:
        text = json.dumps(words.content, ensure_ascii=False)
        yield RecordedMessage(f"{NODE}/labels", "std_msgs/msg/String", round(words.when * 1e9), String(data=text), latched=True)


def pairs_of(rounds: list[list[Answer]]) -> tuple[dict[int, Answer], dict[int, Answer]]:
    """The answers to the frames that were answered in both rounds, with the old words and with the new ones."""
    newest = max((answer.version for answer in rounds[1]), default=0)
    before = {answer.index: answer for answer in rounds[0] if answer.version < newest}
    after = {answer.index: answer for answer in rounds[1] if answer.version == newest}
    common = sorted(before.keys() & after.keys())
    return {index: before[index] for index in common}, {index: after[index] for index in common}


def ask_one_by_one(user, recording, playback: Playback, indices: list[int]) -> tuple[dict[int, Answer], dict[int, Answer]]:
    """These frames, each waited for: first with the hazards named, then without. As many of them as there is patience for."""
    from vl4ad_ros.detector_client import deserialize_image, pixels

    # Those that there is time for are spread over the drive.
    indices = [index for stride in range(8) for index in indices[stride::8]]
    rounds: list[dict[int, Answer]] = []
    for _ in range(2):
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        for index in indices:
            if time.monotonic() > deadline:
                break
            message = deserialize_image(recording.frames[index].raw, recording.frames[index].message_type)
            message.header.stamp = user.now()
            stamp = user.send_message(message)
            playback.asked_again[stamp] = index
            labels, scores = (user.output(topic, stamp, timeout=30) for topic in TOPICS)
            if labels is not None and scores is not None:
                answers[index] = Answer(index, pixels(labels), pixels(scores), float("nan"), 0)
        rounds.append(answers)
        if len(rounds) == 1:
            versions = {labels.content["version"] for labels in user.collected.labels}
            user.set_parameter("hazard_prompts", [])
            user.wait_for(lambda c, seen=versions: c.labels and c.labels[-1].content["version"] not in seen, timeout=60)
    common = sorted(rounds[0].keys() & rounds[1].keys())
    return {index: rounds[1][index] for index in common}, {index: rounds[0][index] for index in common}


def compare(
    recording,
    playback: Playback,
    rounds: list[list[Answer]],
    pairs: tuple[dict[int, Answer], dict[int, Answer]],
    prompts: list[str],
    node: dict[str, str],
) -> tuple[Summary, dict[int, Answer], dict[int, Answer]]:
    """The numbers: speed from what was played, precision over the pairs."""
    before, after = pairs
    compared = f"the same {len(before)} of {len(recording.frames)} frames before and after"
    everything = [answer for part in rounds for answer in part]
    latencies = np.array([answer.latency for answer in everything]) * 1e3
    sent = sum(map(len, playback.sent))
    metrics = [precision([(recording.frames[i].truth, answer.anomaly) for i, answer in part.items()]) for part in (before, after)]
    hazards = per_hazard(recording, before, after, prompts, node.get("model", ""))
    named = [each for each in hazards if each.named == each.named]
    summary = Summary(
        model=node.get("model", "?"),
        engine=f"{node.get('engine', '?')} on {node.get('device', '?')}",
        frames_sent=sent,
        frames_answered=len(everything),
        frames_dropped=sent - len(everything),
        rate_in=sent / playback.seconds,
        rate_out=len(everything) / playback.seconds,
        latency_p50=float(np.percentile(latencies, 50)) if len(latencies) else float("nan"),
        latency_p99=float(np.percentile(latencies, 99)) if len(latencies) else float("nan"),
        words_changed_in_s=playback.words_seconds,
        prompts=prompts,
        compared=compared,
        ap_before=metrics[0][0],
        ap_after=metrics[1][0],
        fpr95_before=metrics[0][1],
        fpr95_after=metrics[1][1],
        hazards=hazards,
        named=_share_named([each for each in named if not each.never_trained]),
        named_of_all=_share_named(named),
        names_right=_share_right(recording, after, hazards, len(prompts)),
    )
    return summary, before, after


def _share_named(hazards: list[HazardResult]) -> float:
    pixels = sum(each.pixels for each in hazards)
    return sum(each.named * each.pixels for each in hazards) / pixels if pixels else float("nan")


def _share_right(recording, after: dict[int, Answer], hazards: list[HazardResult], count: int) -> float:
    """Of the pixels that got the name of one of so many hazards, where the labels say anything, the share that has its own."""
    known = Vocabulary.cityscapes().known_count
    right = sum(each.named * each.pixels for each in hazards if each.named == each.named)
    named = sum(
        np.count_nonzero((answer.labels >= known) & (answer.labels < known + count) & (recording.frames[index].truth != 255))
        for index, answer in after.items()
    )
    return right / named if named else float("nan")


def precision(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Average precision and FPR95 over all pixels of (truth, anomaly) pairs; NaN where there is none."""
    from vl4ad_model.evaluation.exact_metrics import exact_metrics_of
    from vl4ad_model.evaluation.scored_pixels import split_pixels

    if not pairs:
        return float("nan"), float("nan")
    result = exact_metrics_of(split_pixels(scores, truth) for truth, scores in pairs)
    return result.average_precision, result.fpr95


def per_hazard(
    recording, before: dict[int, Answer], after: dict[int, Answer], prompts: list[str], model: str
) -> list[HazardResult]:
    """Each kind of hazard by itself: the pixels of the others are ignored."""
    from vl4ad_model.scenes.hazards import BY_NAME

    known = Vocabulary.cityscapes().known_count
    results = []
    for name in dict.fromkeys(recording.hazard_names.values()):
        values = [value for value, each in recording.hazard_names.items() if each == name]
        named = [i for i, prompt in enumerate(prompts) if name in prompt.split("|")]
        pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
        pixels = right = other = 0
        for part, answers in zip(pairs, (before, after), strict=True):
            for index, answer in answers.items():
                labels = recording.frames[index].labels
                inside = np.isin(labels, values)
                if not inside.any():
                    continue
                truth = np.where(inside, 1, np.where(labels >= 100, 255, 0)).astype(np.uint8)
                part.append((truth, answer.anomaly))
                if answers is after:
                    pixels += int(inside.sum())
                    given = answer.labels[inside]
                    own = np.isin(given, [known + i for i in named])
                    right += int(own.sum())
                    other += int(((given >= known) & (given < known + len(prompts)) & ~own).sum())
        if pixels:
            scores = [precision(part)[0] for part in pairs]
            held_out = model == "tiny" and name in BY_NAME and BY_NAME[name].held_out
            share = right / pixels if named else float("nan")
            results.append(HazardResult(name, pixels, scores[0], scores[1], share, other / pixels, held_out))
    return results


def run(arguments: list[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0; 2 for a user's mistake, 130 when interrupted; each said in one line.
    """
    from vl4ad_model import cli

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        import rclpy  # noqa: F401
    except ImportError:
        print("vl4ad demo: rclpy is missing: source a ROS 2 installation, or pip install 'vl4ad_ros[ros]'", file=sys.stderr)
        return cli.USER_ERROR
    cli.hear_sigterm()
    return cli.run(sys.argv[1:] if arguments is None else arguments, app)


if __name__ == "__main__":
    sys.exit(run())
