"""The RViz and Foxglove layouts of config/ for a detector with a namespace, or with several cameras."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

PREFIX = "/vl4ad_detector/"
"""What the topics of the committed layouts begin with."""


def layout_for(committed: Path, folder: Path, *, namespace: str = "", cameras: Sequence[str] = ()) -> Path:
    """A layout whose topics are those that the detector publishes.

    Args:
        committed: detector.rviz or foxglove_layout.json, for one camera and no namespace.
        folder: where another one is written.
        namespace: of the node.
        cameras: its `cameras`.

    Returns:
        the committed one where its topics are right already; else one in `folder`.
    """
    namespace = namespace.strip("/")
    if not namespace and not cameras:
        return committed
    node = f"/{namespace}{PREFIX}" if namespace else PREFIX
    prefixes = {camera: f"{node}{camera}/" for camera in cameras} or {"": node}
    text = committed.read_text(encoding="utf-8")
    if committed.suffix == ".json":
        text = json.dumps(_foxglove(json.loads(text), prefixes), indent=2)
    else:
        text = yaml.safe_dump(_rviz(yaml.safe_load(text), prefixes), sort_keys=False)
    written = folder / committed.name
    written.write_text(text, encoding="utf-8")
    return written


def _rviz(layout: dict[str, Any], prefixes: dict[str, str]) -> dict[str, Any]:
    manager = layout["Visualization Manager"]
    displays = []
    for camera, prefix in prefixes.items():
        for display in copy.deepcopy(manager["Displays"]):
            display["Topic"]["Value"] = display["Topic"]["Value"].replace(PREFIX, prefix)
            display["Name"] = f"{camera}: {display['Name']}" if camera else display["Name"]
            displays.append(display)
    manager["Displays"] = displays
    return layout


def _foxglove(layout: dict[str, Any], prefixes: dict[str, str]) -> dict[str, Any]:
    """The panels that show a camera once per camera, side by side; the others as they are."""
    panels, pictures = layout["configById"], layout["layout"]["first"]
    columns = []
    for camera, prefix in prefixes.items():
        for name in (pictures["first"], pictures["second"]):
            panel = copy.deepcopy(panels[name])
            panel["imageMode"]["imageTopic"] = panel["imageMode"]["imageTopic"].replace(PREFIX, prefix)
            for title in ("foxglovePanelTitle", "lichtblickPanelTitle"):
                panel[title] = f"{camera}: {panel[title]}" if camera else panel[title]
            panels[name + camera] = panel
        columns.append({**pictures, "first": pictures["first"] + camera, "second": pictures["second"] + camera})
    if "" not in prefixes:
        del panels[pictures["first"]], panels[pictures["second"]]
    row = columns.pop()
    for done, column in enumerate(reversed(columns), 1):
        row = {"direction": "row", "first": column, "second": row, "splitPercentage": 100 / (done + 1)}
    layout["layout"]["first"] = row
    return layout
