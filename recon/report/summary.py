"""What became of every frame, from what the stages wrote."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]


def frame_list(source: list[Entry], gate: list[Entry], poses: list[Entry]) -> list[Entry]:
    """Return one entry per source frame: index, name, timestamp_s, status, reason.

    Args:
        source: entries of the frames stage.
        gate: entries of the masks stage.
        poses: entries of the trajectory.
    """
    gated = {entry["index"]: entry for entry in gate}
    posed = {entry["index"]: entry for entry in poses}
    return [
        {key: entry[key] for key in ("index", "name", "timestamp_s")} | _status(entry, gated.get(entry["index"]), posed.get(entry["index"]))
        for entry in source
    ]


def _status(source: Entry, gate: Entry | None, pose: Entry | None) -> Entry:
    if source["file"] is None:
        return {"status": "rejected", "reason": source["reason"]}
    if gate is None or gate["status"] == "rejected":
        return {"status": "rejected", "reason": gate["reason"] if gate else "not looked at"}
    if pose is None:
        return {"status": "lost", "reason": "no pose was estimated"}
    return {"status": pose["status"], "reason": pose["reason"]}


def frame_numbers(frames: list[Entry]) -> dict[str, int]:
    """Return total, used (past the gate), posed, rejected and lost."""
    count = {status: sum(frame["status"] == status for frame in frames) for status in ("keyframe", "posed", "lost", "rejected")}
    return {
        "total": len(frames),
        "used": len(frames) - count["rejected"],
        "posed": count["keyframe"] + count["posed"],
        "rejected": count["rejected"],
        "lost": count["lost"],
        "keyframes": count["keyframe"],
    }


def partial_reasons(source: Entry, frames: list[Entry]) -> list[str]:
    """Return why the result covers only a part of the recording; empty when it covers all of it.

    Frames that the gate rejected (dark, blurred) are no part of that: they hold nothing to reconstruct.
    """
    reasons = [f"the source is incomplete: {source['incomplete']}"] if source["incomplete"] else []
    undecodable = [entry["index"] for entry in source["frames"] if (entry["reason"] or "").startswith("cannot be decoded")]
    if undecodable:
        reasons.append(f"{_frames(len(undecodable))} cannot be decoded, the first is {undecodable[0]}")
    lost = [frame for frame in frames if frame["status"] == "lost"]
    if lost:
        reasons.append(f"{_frames(len(lost))} of {len(frames)} lost, the first is {lost[0]['index']}: {lost[0]['reason']}")
    return reasons


def _frames(count: int) -> str:
    return f"{count} frame" if count == 1 else f"{count} frames"


def instrument_notes(instruments: Entry | None) -> list[str]:
    """Return what the page says of instruments that were found here (`gate.json` of the masks stage); nothing of given masks."""
    if instruments is None or "finder" not in instruments:
        return []
    who = f"instruments were found by {instruments['finder']!r}, not given"
    if not instruments["is_used"]:
        return [f"{who}, and are not used: {instruments['reason']}"]
    suspicious = len(instruments["suspicious_frames"])
    doubt = f", more than half of it in {_frames(suspicious)}: look at these" if suspicious else ""
    return [f"{who}: they cover {instruments['mean_coverage']:.1%} of the field on average{doubt}"]
