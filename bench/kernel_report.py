"""Measurements as a text table, CSV, JSON and an SVG roofline."""

import csv
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measurement:
    """One row: what ran, how long it took on the device, and what that means.

    ``useful_bytes`` are output, packed codes, scales and indices that the lookup needs, ``moved_bytes`` what the memory
    has to move for them. ``ratio`` is
    ExecuTorch's time over this one's, None without its shaders.
    """

    variant: str
    who: str
    rows: int
    median_us: float
    useful_bytes: int
    ratio: float | None = None
    share_of_copy: float = 0.0
    fastest_us: float = 0.0
    moved_bytes: int = 0

    @property
    def gigabytes_per_second(self) -> float:
        """Useful bytes a nanosecond."""
        return self.useful_bytes / self.median_us / 1e3

    @property
    def share_of_limit(self) -> float:
        """The share of the copy's speed at which the memory moves what it has to."""
        return self.share_of_copy * self.moved_bytes / self.useful_bytes


_GOAL = 0.9
_HEADS = ("variant", "who", "rows", "median us", "useful GB/s", "of copy", "of limit", "x ExecuTorch")


def text_table(measurements: list[Measurement]) -> str:
    """The measurements as aligned text (GitHub's table form)."""
    lines = [_HEADS, *(_cells(m) for m in measurements)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADS))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _cells(m: Measurement) -> tuple[str, ...]:
    ratio = "" if m.ratio is None else f"{m.ratio:.2f}"
    speed, share = f"{m.gigabytes_per_second:.1f}", f"{100 * m.share_of_copy:.0f} %"
    return m.variant, m.who, str(m.rows), f"{m.median_us:.1f}", speed, share, f"{100 * m.share_of_limit:.0f} %", ratio


def verdict(measurements: list[Measurement]) -> list[str]:
    """Where our shader is slower than ExecuTorch's, or below 90 % of its limit at the largest size: a line each."""
    ours = [m for m in measurements if m.who == "ours"]
    largest = {m.variant: m.rows for m in sorted(ours, key=lambda m: m.rows)}
    lines = [f"slower than ExecuTorch's: {m.variant}, {m.rows} rows: {m.ratio:.2f}" for m in ours if (m.ratio or 1) < 1]
    lines += [
        f"below 90 % of its bytes' limit: {m.variant}, {m.rows} rows: {100 * m.share_of_limit:.0f} %"
        for m in ours
        if m.rows == largest[m.variant] and m.share_of_limit < _GOAL
    ]
    return lines or ["never slower than ExecuTorch's, and at 90 % of its bytes' limit at the largest size"]


def page(header: dict[str, object], measurements: list[Measurement]) -> str:
    """What docs/ shows of a run with ``--all``."""
    sizes = f"V = {header['vocab_size']}, D = {header['embed_dim']}, G = {header['group_size']}"
    copy = f"its best copy moves {float(str(header['copy_gigabytes_per_second'])):.0f} GB/s"
    about = "`./dev bench kernel --all` measures it; `of limit` counts what the memory has to move,"
    lines = ["# All variants of the kernel", ""]
    lines += [f"{header['device']} ({header['driver']}), {header['date']}; {sizes}; {copy}."]
    lines += [f"{about} which in the block layout is eight rows of codes for each row."]
    lines += ["", *(f"- {line}" for line in verdict(measurements)), ""]
    return "\n".join([*lines, text_table([m for m in measurements if m.who != "ours, sizes at run time"]), ""])


def write_files(directory: Path, header: dict[str, object], measurements: list[Measurement], copy_gbs: float) -> None:
    """kernel.csv, kernel.json and kernel.svg in ``directory``, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{**dataclasses.asdict(m), "gigabytes_per_second": m.gigabytes_per_second} for m in measurements]
    with (directory / "kernel.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (directory / "kernel.json").write_text(json.dumps({**header, "measurements": rows}, indent=1) + "\n")
    (directory / "kernel.md").write_text(page(header, measurements))
    (directory / "kernel.svg").write_text(roofline(header, measurements, copy_gbs))


_COLORS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#475569", "#0f766e")
_LEFT, _TOP, _WIDTH, _HEIGHT, _KEY = 70, 50, 620, 380, 330


def roofline(header: dict[str, object], measurements: list[Measurement], copy_gbs: float) -> str:
    """Useful GB/s over useful bytes, both logarithmic, below two roofs: the copy bandwidth and the dispatch floor."""
    floor_us = min(m.median_us for m in measurements)
    sizes = [m.useful_bytes for m in measurements]
    low_x, high_x = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    high_x = max(high_x, low_x + 1)
    speeds = [m.gigabytes_per_second for m in measurements]
    low_y, high_y = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(copy_gbs, *speeds)))

    def at(size: float, speed: float) -> tuple[float, float]:
        x = _LEFT + _WIDTH * (math.log10(size) - low_x) / (high_x - low_x)
        y = _TOP + _HEIGHT * (high_y - math.log10(max(speed, 10.0**low_y))) / (high_y - low_y)
        return round(x, 1), round(y, 1)

    width, height = _LEFT + _WIDTH + _KEY, _TOP + _HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">embedding_q4gsw on {header["device"]}, {header["date"]}</text>',
    ]
    for power in range(low_x, high_x + 1):
        x, y = at(10.0**power, 10.0**low_y)
        parts.append(
            f'<path d="M{x} {_TOP}V{y}" stroke="#ddd"/><text x="{x - 10}" y="{y + 18}">{_bytes(10**power)}</text>'
        )
    for power in range(low_y, high_y + 1):
        x, y = at(10.0**low_x, 10.0**power)
        parts.append(f'<path d="M{x} {y}h{_WIDTH}" stroke="#ddd"/><text x="8" y="{y + 4}">{10.0**power:g} GB/s</text>')
    steps = [10 ** (low_x + (high_x - low_x) * i / 60) for i in range(61)]
    roof = " ".join("{},{}".format(*at(s, min(copy_gbs, s / floor_us / 1e3))) for s in steps)
    parts.append(f'<polyline points="{roof}" fill="none" stroke="#111" stroke-dasharray="5 3"/>')
    parts.append(
        f'<text x="{_LEFT + _WIDTH + 15}" y="{_TOP}">roof: copy {copy_gbs:.0f} GB/s, dispatch {floor_us:.1f} us</text>'
    )
    series = sorted({(m.variant, m.who) for m in measurements})
    for number, (variant, who) in enumerate(series):
        color = _COLORS[number % len(_COLORS)]
        points = sorted(
            (m.useful_bytes, m.gigabytes_per_second) for m in measurements if (m.variant, m.who) == (variant, who)
        )
        places = [at(*point) for point in points]
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}" fill="none" stroke="{color}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>' for x, y in places]
        key = _TOP + 22 * (number + 1)
        parts.append(f'<circle cx="{_LEFT + _WIDTH + 20}" cy="{key - 4}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 30}" y="{key}">{who}: {variant}</text>')
    middle = _LEFT + _WIDTH // 2 - 60
    parts.append(f'<text x="{middle}" y="{_TOP + _HEIGHT + 42}">useful bytes of one lookup</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size // scale} {unit}"
    return f"{size} B"
