"""What the demo leaves behind: a table in the terminal, a self-contained HTML page, and one picture."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.image_files import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from vl4ad_ros.demo import Answer, HazardResult, Summary
    from vl4ad_ros.demo_recording import Recording

SHOWN = 5
"""How many frames the page shows."""


def table(summary: Summary, page: Path) -> Table:
    """The summary for the terminal."""
    from rich.table import Table

    result = Table("", "", title="VL4AD demo", show_header=False, title_justify="left")
    result.add_row("model, engine", f"{summary.model}, {summary.engine}")
    result.add_row("images in / out", f"{summary.rate_in:.1f} Hz / {summary.rate_out:.1f} Hz")
    result.add_row(
        "latency p50 / p99", f"{summary.latency_p50:.0f} ms / {summary.latency_p99:.0f} ms (stamp to anomaly score received)"
    )
    result.add_row("frames", f"{summary.frames_sent} sent, {summary.frames_answered} answered, {summary.frames_dropped} dropped")
    result.add_row("hazard_prompts", ", ".join(summary.prompts))
    result.add_row("words changed in", f"{summary.words_changed_in_s:.2f} s, while the images went on")
    result.add_section()
    if summary.named == summary.named:
        result.add_row("named right", f"[bold]{summary.named:.0%}[/bold] {_of_which(summary)}; without names, none")
        result.add_row("right names", f"{summary.names_right:.0%} of the pixels that got a name")
    frames = f"over {summary.compared}"
    result.add_row("AP before / after", f"{summary.ap_before:.1%} / [bold]{summary.ap_after:.1%}[/bold] {frames}")
    result.add_row("FPR95 before / after", f"{summary.fpr95_before:.1%} / {summary.fpr95_after:.1%}")
    for hazard in summary.hazards:
        named = (
            "" if hazard.named != hazard.named else f", {hazard.named:.0%} of its pixels named right, {hazard.misnamed:.0%} wrong"
        )
        result.add_row(f"  {_title(hazard)}", f"AP {hazard.ap_before:.1%} / {hazard.ap_after:.1%}{named}")
    result.add_section()
    result.add_row("page", str(page))
    result.add_row("picture", str(page.with_name("demo.png")))
    if summary.recording:
        topics = ", ".join(f"{count} {topic.split('/', 2)[-1]}" for topic, count in summary.recorded.items())
        result.add_row("recording", f"{summary.recording} ({summary.recording_bytes / 1e6:.0f} MB mcap: {topics})")
    return result


def write(out: Path, recording: Recording, summary: Summary, before: dict[int, Answer], after: dict[int, Answer]) -> Path:
    """Write index.html and demo.png.

    Returns:
        the page's path.

    Raises:
        ImageError: the folder cannot be written.
    """
    chosen = choose_frames(recording, sorted(before))
    rows = [_row(recording, index, before[index], after[index], summary.prompts) for index in chosen]
    counts = sum((np.bincount(after[index].labels.ravel(), minlength=256) for index in chosen), np.zeros(256, np.int64))
    write_bytes(out / "demo.png", _png(_sheet(rows, summary.prompts, counts)))
    page = out / "index.html"
    write_bytes(page, _html(recording, summary, before, after, chosen, rows).encode("utf-8"))
    return page


def choose_frames(recording: Recording, indices: list[int]) -> list[int]:
    """Frames to show: of each passage of a hazard the one where it is largest, the largest of them, in order of time.

    The choice looks at the labels only, never at the results.
    """
    best: dict[int, tuple[int, int]] = {}
    for index in indices:
        values, counts = np.unique(recording.frames[index].labels, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if 100 <= value < 255 and count > best.get(value, (0, 0))[0]:
                best[value] = (count, index)
    # One of each kind first, then what is left.
    names = recording.hazard_names
    by_name: dict[str, tuple[int, int]] = {}
    for value, entry in best.items():
        name = names.get(value, str(value))
        by_name[name] = max(by_name.get(name, (0, 0)), entry)
    ordered = sorted(by_name.values(), reverse=True) + sorted(best.values(), reverse=True)
    return sorted(list(dict.fromkeys(index for _, index in ordered))[:SHOWN])


def _row(recording: Recording, index: int, before: Answer, after: Answer, prompts: list[str]) -> list[np.ndarray]:
    """Camera, overlay before, overlay after, anomaly before, anomaly after: (H, W, 3) uint8 each."""
    from vl4ad_model import visualization
    from vl4ad_model.evaluation.bags import decode_image
    from vl4ad_model.segmenter import Segmentation
    from vl4ad_model.vocabulary import Vocabulary
    from vl4ad_ros.detector_client import deserialize_image

    frame = recording.frames[index]
    camera = np.array(decode_image(deserialize_image(frame.raw, frame.message_type)))
    known = Vocabulary.cityscapes()
    shown = [
        visualization.overlay(camera, Segmentation(answer.labels, answer.anomaly, vocabulary, answer.version))
        for answer, vocabulary in ((before, known), (after, known.with_hazards(prompts)))
    ]
    heat = [visualization.anomaly_heatmap(answer.anomaly) for answer in (before, after)]
    return [_outline(camera, frame.truth), *shown, *heat]


def _outline(camera: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The camera image with a thin line around the labelled hazards."""
    import cv2

    contours, _ = cv2.findContours((truth == 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(camera.copy(), contours, -1, (255, 255, 255), 1, cv2.LINE_AA)


TITLES = ("camera, hazards outlined", "overlay before", "overlay after naming", "anomaly before", "anomaly after naming")


def _sheet(rows: list[list[np.ndarray]], prompts: list[str], counts: np.ndarray, width: int = 384, gap: int = 6) -> np.ndarray:
    """All pictures on one sheet, with titles and a legend; `counts` (256,) are the pixels of each label after naming."""
    from PIL import Image, ImageDraw, ImageFont

    from vl4ad_model.visualization import legend_strip
    from vl4ad_model.vocabulary import Vocabulary

    if not rows:
        return np.zeros((16, 16, 3), np.uint8)
    height = round(width * rows[0][0].shape[0] / rows[0][0].shape[1])
    top = 30
    sheet = Image.new("RGB", (len(TITLES) * (width + gap) - gap, top + len(rows) * (height + gap) - gap), (18, 20, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    for column, title in enumerate(TITLES):
        draw.text((column * (width + gap) + 8, 5), title, fill=(235, 235, 235), font=font)
        for line, row in enumerate(rows):
            picture = Image.fromarray(row[column]).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * (width + gap), top + line * (height + gap)))
    return np.vstack((np.asarray(sheet), legend_strip(Vocabulary.cityscapes().with_hazards(prompts), counts, sheet.width, size=17)))


def _png(rgb: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG")
    return stream.getvalue()


def _jpeg_uri(rgb: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


# --- the page ---------------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#e8590c}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1500px;padding:28px}
h1{font-size:28px;margin:0}h2{font-size:19px;margin:36px 0 8px}p{max-width:75ch;margin:6px 0}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}
.card{background:var(--soft);border:1px solid var(--line);border-radius:10px;padding:10px 16px;min-width:130px}
.card{max-width:300px}.card b{display:block;font-size:24px;white-space:nowrap}.card span{font-size:13px;opacity:.75}
table{border-collapse:collapse}td,th{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line)}
.frames{display:grid;grid-template-columns:repeat(5,1fr);gap:6px}.frames img{width:100%;display:block;border-radius:4px}
.frames div{font-size:13px;opacity:.8;align-self:end}.frames .time{grid-column:1/-1;margin-top:8px}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;margin:8px 0}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px}
.legend i.ramp{display:inline-block;width:160px;margin:0 4px;height:12px;border-radius:3px;vertical-align:-1px;
background:linear-gradient(90deg,#000004,#57106e,#bc3754,#f98e09,#fcffa4)}
code{background:var(--soft);padding:1px 5px;border-radius:4px}svg{max-width:100%;height:auto}
"""


def _html(
    recording: Recording,
    summary: Summary,
    before: dict[int, Answer],
    after: dict[int, Answer],
    chosen: list[int],
    rows: list[list[np.ndarray]],
) -> str:
    prompts = json_list(summary.prompts)
    cards = [
        *([] if summary.named != summary.named else [(f"{summary.named:.0%}", f"named right, {_of_which(summary)}")]),
        *(
            []
            if summary.names_right != summary.names_right
            else [(f"{summary.names_right:.0%}", "of the pixels that got a name: it is right")]
        ),
        (f"{summary.rate_out:.1f} Hz", f"out, {summary.rate_in:.1f} Hz in"),
        (f"{summary.latency_p50:.0f} / {summary.latency_p99:.0f} ms", "latency p50 / p99"),
        (f"{summary.frames_dropped} of {summary.frames_sent}", "frames dropped"),
        (f"{summary.words_changed_in_s:.2f} s", "to take up the new words"),
        (f"{summary.ap_before:.1%} → {summary.ap_after:.1%}", "AP of hazards without → with names"),
    ]
    shown = "".join(f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(text)}</span></div>' for value, text in cards)
    hazards = "".join(
        f"<tr><td>{html.escape(_title(each))}</td><td>{each.ap_before:.1%}</td><td>{each.ap_after:.1%}</td>"
        f"<td>{'not named' if each.named != each.named else format(each.named, '.0%')}</td><td>{each.misnamed:.0%}</td></tr>"
        for each in summary.hazards
    )
    frames = "".join(f"<div>{title}</div>" for title in TITLES)
    for index, row in zip(chosen, rows, strict=True):
        names = sorted({recording.hazard_names.get(v, str(v)) for v in _large_hazards(recording.frames[index].labels)})
        frames += f'<div class="time">{recording.frames[index].seconds:.1f} s: {html.escape(", ".join(names))}</div>'
        frames += "".join(f'<img src="{_jpeg_uri(picture)}" alt="{title}">' for picture, title in zip(row, TITLES, strict=True))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>VL4AD demo</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>Hazards named while the camera runs</h1>
<p>A recorded drive went through the ROS 2 node twice without a pause. The first time it knew the 19 Cityscapes classes. As the
second round began, one call changed the words:
<code>ros2 param set /vl4ad_detector hazard_prompts "{html.escape(prompts)}"</code>. Nothing was retrained or restarted.</p>
<div class="cards">{shown}</div>
<p>Model {html.escape(summary.model)}, engine {html.escape(summary.engine)}. AP and FPR95 ({summary.fpr95_before:.1%} before,
{summary.fpr95_after:.1%} after) are over all pixels of {summary.compared}. Naming changes the labels; the score of what was found
already hardly rises.
Latency is from the header's stamp to the arrival of the anomaly score in another process.</p>
<h2>Score over the drive</h2>{_timeline(recording, before, after)}
<h2>Each kind of hazard</h2>
<table><tr><th>hazard</th><th>AP before</th><th>AP after</th><th>pixels named right</th><th>named as another</th></tr>{hazards}
</table><h2>Frames</h2><p>Chosen by the labels alone: for each hazard that is passed the frame in which it is largest.</p>
{_legend(summary.prompts)}<div class="frames">{frames}</div>{_recorded(summary)}</body></html>"""


def _recorded(summary: Summary) -> str:
    """Where the messages themselves are, and how to play them."""
    if not summary.recording:
        return ""
    rows = "".join(
        f"<tr><td><code>{html.escape(topic)}</code></td><td>{count}</td></tr>" for topic, count in summary.recorded.items()
    )
    play = html.escape(f"ros2 bag play {summary.recording}")
    again = max((count for topic, count in summary.recorded.items() if "image" in topic), default=0) - summary.frames_sent
    repeated = ""
    if again > 0:
        repeated = f" {again} images more than the two rounds had: those that were not answered in both were sent again at the end."
    return f"""<h2>Recording</h2><p>Every image that was sent and every message that came back, as they were, in an mcap bag
({summary.recording_bytes / 1e6:.0f} MB) that rosbag2 and Foxglove read: <code>{play}</code>.{repeated}</p>
<table><tr><th>topic</th><th>messages</th></tr>{rows}</table>"""


def _of_which(summary: Summary) -> str:
    if not any(hazard.never_trained and hazard.named == hazard.named for hazard in summary.hazards):
        return "of the named hazards' pixels"
    return f"of the pixels of types trained on ({summary.named_of_all:.0%} with those that it never saw)"


def _title(hazard: HazardResult) -> str:
    return hazard.name + (" (a type never trained on)" if hazard.never_trained else "")


def json_list(prompts: list[str]) -> str:
    """['a', 'b'] as one types it after `ros2 param set`."""
    return "[" + ", ".join("'" + prompt.replace("'", "''") + "'" for prompt in prompts) + "]"


def _large_hazards(labels: np.ndarray) -> list[int]:
    values, counts = np.unique(labels, return_counts=True)
    return [int(v) for v, c in zip(values, counts, strict=True) if 100 <= v < 255 and c > labels.size // 1000]


def _legend(prompts: list[str]) -> str:
    from vl4ad_model.vocabulary import Vocabulary

    vocabulary = Vocabulary.cityscapes().with_hazards(prompts)
    table = vocabulary.color_table().tolist()
    colors = "".join(
        f'<span><i style="background:rgb{tuple(table[index])}"></i>{html.escape(name)}</span>'
        for index, name in enumerate(vocabulary.names)
    )
    return f'<div class="legend">{colors}<span>anomaly 0 <i class="ramp"></i> 1</span></div>'


def _timeline(recording: Recording, before: dict[int, Answer], after: dict[int, Answer]) -> str:
    """Mean score on hazard pixels, before and after, over the time of the drive, as SVG."""
    width, height, left, bottom, top = 1000, 250, 46, 30, 34
    duration = max(recording.seconds, 1e-6)

    def line(answers: dict[int, Answer], inside: int, color: str, dash: str = "", wide: float = 2.5) -> str:
        points = []
        for index in sorted(answers):
            mask = recording.frames[index].truth == inside
            if mask.sum() >= 50:
                x = left + recording.frames[index].seconds / duration * (width - left - 10)
                y = top + (height - bottom - top) * (1 - float(np.clip(answers[index].anomaly[mask].mean(), 0, 1)))
                points.append(f"{x:.1f},{y:.1f}")
        return (
            f'<polyline fill="none" stroke="{color}" stroke-width="{wide}" stroke-dasharray="{dash}" points="{" ".join(points)}"/>'
        )

    grid = "".join(
        f'<line x1="{left}" x2="{width - 10}" y1="{y}" y2="{y}" stroke="#8884"/>'
        f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
        for y in [top + (height - bottom - top) * (1 - value)]
    )
    ticks = "".join(
        f'<text x="{left + second / duration * (width - left - 10):.0f}" y="{height - 8}" text-anchor="end">{second} s</text>'
        for second in range(2, int(duration) + 1, 2)
    )
    legend = "".join(
        f'<text x="{left + offset}" y="16" fill="{color}">{text}</text>'
        for offset, color, text in (
            (0, "#868e96", "— hazards before"),
            (150, "#e8590c", "— hazards after"),
            (290, "#868e96", "- - everything else, before"),
            (500, "#e8590c", "- - everything else, after"),
        )
    )
    lines = (
        line(before, 1, "#868e96", wide=7)  # seen on both sides of what lies on it
        + line(after, 1, "#e8590c")
        + line(before, 0, "#868e96", "5 5", wide=7)
        + line(after, 0, "#e8590c", "5 5")
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="13" fill="currentColor" role="img" '
        f'aria-label="mean anomaly score of hazards and of everything else">{grid}{ticks}{lines}{legend}</svg>'
        "<p>Mean anomaly score of the pixels labelled as hazards, and of all others.</p>"
    )
