"""Policies on a grid world in a report: arrows for what is done, colours and numbers for what is expected.

The last evaluation is drawn large, and beside it, small, how it came to that, in the colours of the last.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from habilis.envs.grid_drawing import GOAL, HEAT, INK, OBSTACLE, WHITE, heat, ink_on, value_range
from habilis.envs.gridworld import Cell

if TYPE_CHECKING:
    from habilis.evaluation.grid_policy import GridPolicy
    from habilis.evaluation.runs import Evaluation, RunRecord

SMALL = 6
"""Drawings of how it came to that, at most."""
NUMBERED = 12
"""Columns up to which values are written into the cells."""
SIDE = 100
"""Of a cell, in units of the drawing."""


def policy_section(run: RunRecord, label: str) -> str:
    """Return the section on what a run's policy does in every cell, or nothing where it is not known.

    Args:
        run: what is drawn.
        label: what it is called among others.
    """
    known = [evaluation for evaluation in run.evaluations if evaluation.on_grid is not None]
    if not known:
        return ""
    title, last = f"Policy: {label}" if label else "Policy", known[-1]
    limits = _limits(last)
    # most happens at the beginning, so the drawings are taken closer together there
    before = sorted({(len(known) - 1) * k * k // (SMALL * SMALL) for k in range(SMALL + 1)})[:-1]
    small = "".join(_figure(known[k], limits, numbered=False) for k in before)
    large = _figure(last, limits, numbered=True) + _scale(limits)
    return (
        f"<section><h2>{escape(title)}</h2>"
        f'<div class="grids"><div>{large}</div><div class="earlier">{small}</div></div></section>'
    )


def _limits(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return the lowest and the highest value; None where there are no values."""
    policy = evaluation.on_grid
    return None if policy is None or policy.values is None else value_range(policy.grid, policy.values)


def _figure(evaluation: Evaluation, limits: tuple[float, float] | None, *, numbered: bool) -> str:
    policy = evaluation.on_grid
    assert policy is not None
    caption = f"after {evaluation.step:,} env steps" if numbered else f"{evaluation.step:,} steps"
    drawing = draw(policy, limits, numbered=numbered and policy.grid.columns <= NUMBERED)
    return f'<figure class="grid">{drawing}<figcaption>{caption}</figcaption></figure>'


def draw(policy: GridPolicy, limits: tuple[float, float] | None, *, numbered: bool) -> str:
    """Return the drawing of a policy as SVG.

    Args:
        policy: what is drawn.
        limits: the values of the first and the last colour; None where there are no values.
        numbered: whether values are written into the cells.
    """
    grid, values = policy.grid, policy.values
    colours = {} if values is None else heat(grid, values, limits)
    parts = []
    for cell in grid.cells:
        if cell == grid.goal:
            parts.append(_tile(cell, _rgb(GOAL)) + _target(cell))
        elif cell in grid.obstacles:
            parts.append(_tile(cell, _rgb(OBSTACLE)))
        else:
            colour = colours.get(cell)
            ink = _rgb(ink_on(colour) if colour else INK)
            state = grid.state(cell)
            text = None if values is None or not numbered else _number(values[state])
            parts.append(_tile(cell, _rgb(colour) if colour else "var(--line)"))
            parts.append(_rim(cell, ink) if cell == grid.start else "")
            parts.append(_inside(cell, policy.actions[state], text, ink))
    size = f"{grid.columns * SIDE} {grid.rows * SIDE}"
    return f'<svg viewBox="0 0 {size}" role="img" aria-label="policy on the grid">{"".join(parts)}</svg>'


def _tile(cell: Cell, colour: str) -> str:
    x, y = _corner(cell)
    return f'<rect x="{x + 4}" y="{y + 4}" width="92" height="92" rx="12" fill="{colour}"/>'


def _rim(cell: Cell, colour: str) -> str:
    x, y = _corner(cell)
    style = f'fill="none" stroke="{colour}" stroke-width="3"'
    return f'<rect x="{x + 8.5}" y="{y + 8.5}" width="83" height="83" rx="8.5" {style}/>'


def _target(cell: Cell) -> str:
    x, y = _corner(cell)
    centre = f'cx="{x + 50}" cy="{y + 50}"'
    return (
        f'<circle {centre} r="24" fill="none" stroke="{_rgb(WHITE)}" stroke-width="8"/>'
        f'<circle {centre} r="10" fill="{_rgb(WHITE)}"/>'
    )


def _inside(cell: Cell, action: int, text: str | None, ink: str) -> str:
    """Return the arrow of an action, turned clockwise from up, and the value below it."""
    x, y = _corner(cell)
    middle = 50 if text is None else 41
    arrow = ""
    if action >= 0:
        turn = f"translate({x + 50} {y + middle}) rotate({90 * action})"
        style = f'fill="none" stroke="{ink}" stroke-width="6" stroke-linecap="round" stroke-linejoin="round"'
        arrow = f'<path d="M0 22V-22M-15-7L0-22L15-7" transform="{turn}" {style}/>'
    if text is None:
        return arrow
    style = f'font-size="15" text-anchor="middle" fill="{ink}" opacity="0.85"'
    return f'{arrow}<text x="{x + 50}" y="{y + 83}" {style}>{text}</text>'


def _scale(limits: tuple[float, float] | None) -> str:
    """Return the bar that says which colour is which value."""
    if limits is None:
        return ""
    stops = ", ".join(_rgb(colour) for colour in HEAT)
    bar = f'<i style="background: linear-gradient(to right, {stops})"></i>'
    return f'<p class="scale">value {_number(limits[0])}{bar}{_number(limits[1])}</p>'


def _corner(cell: Cell) -> tuple[int, int]:
    return cell[1] * SIDE, cell[0] * SIDE


def _rgb(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
