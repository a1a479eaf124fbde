"""Compare what two continual-learning strategies still draw, task by task, from the same noise. A Gradio app.

python spaces/compare/app.py --zoo zoo/     a local zoo (or GDZOO_ZOO=zoo/)
python spaces/compare/app.py                the models on the Hub of GDZOO_NAMESPACE, a Space's owner, or gdzoo
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from api import Api
from markup import SIDES
from page import PLAY, Page
from quick_import import gradio as gr
from sources import NAMESPACE, FolderSource, HubSource
from view import MAX_SAMPLES, MAX_SEED, STEPS, bounded_view
from zoo import Zoo

HERE = Path(__file__).parent
QUEUE_SIZE = 32
SECONDS_A_TASK = 1.5  # while playing
PICKERS = {"benchmark": "Benchmark", "seed": "Training seed", "left": "Left", "right": "Right"}
INTRODUCTION = """\
# What does it still draw?

A diffusion model learns one **task** after another, each a few new classes, and must keep the ones before without their
images ([generative distillation](https://arxiv.org/abs/2311.14028)). Move the slider: both models draw from the *same
noise*, so what changes from task to task is what was learned, or forgotten.
"""

html = partial(gr.HTML, apply_default_css=False)  # style.css says it all
slider = partial(gr.Slider, 1, step=1, buttons=[], min_width=200)
dropdown = partial(gr.Dropdown, filterable=False)  # nothing to type in: no keyboard rises on a phone


def build(zoo: Zoo) -> gr.Blocks:
    """The page over a zoo that has been read. Its first values are all there before any event: samples.png, results."""
    page = Page(zoo)
    view = bounded_view(zoo, {})
    setting = page.settings(view)
    with gr.Blocks(title="gdzoo: what does it still draw?", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        notice = html(page.notice())
        with gr.Column(visible=bool(zoo.models)) as content:
            with gr.Row():
                pickers = [
                    # On a phone, each side has a line of its own.
                    dropdown(label=label, min_width=180 if name in SIDES else 120, **setting[name])
                    for name, label in PICKERS.items()
                ]
            with gr.Row(equal_height=True):
                task = slider(label="After task", scale=5, elem_id="task", **setting["task"])
                play = gr.Button(PLAY, variant="primary", scale=1, min_width=110)
                timer = gr.Timer(SECONDS_A_TASK, active=False)
            with gr.Row(elem_id="comparison"):
                drawn = [
                    html(value, elem_id=name)
                    for name, value in zip(("left-panel", "right-panel", "classes"), page.published(view), strict=True)
                ]
            with gr.Row():
                noise_seed = gr.Number(
                    label="Noise seed", minimum=0, maximum=MAX_SEED, precision=0, min_width=140, **setting["noise_seed"]
                )
                samples = slider(label="Samples", maximum=MAX_SAMPLES, **setting["samples"])
                steps = dropdown(label="DDIM steps", choices=list(STEPS), min_width=140, **setting["steps"])
            charts_value, table_value, origins_value = page.described(view)
            gr.Markdown("## How it went, task by task")
            charts = html(charts_value)
            table = html(table_value)
            gr.Markdown("## How it was made")
            origins = html(origins_value)

        benchmark, seed, left, right = pickers
        controls = [benchmark, left, right, task, seed, noise_seed, samples, steps]  # as VIEW_FIELDS has them
        described = [charts, table, origins]
        connect(page, blocks, [notice, content], controls, drawn, described, play, timer)
        add_api(Api(page))
    return blocks


def connect(page: Page, blocks: gr.Blocks, status, controls, drawn, described, play, timer) -> None:
    """Which event changes what. Curves and text come at once, samples when they are drawn."""
    quiet = dict(api_visibility="private", show_progress="hidden")
    # What comes while such an event runs is not dropped, as `then` does by default: the last of it runs next.
    latest = quiet | dict(trigger_mode="always_last")
    benchmark, _, _, task, *_ = controls

    opened = blocks.load(page.open, outputs=[*status, *controls, *drawn, *described], queue=False, **quiet)
    drawn_first = opened.then(page.draw, controls, drawn, **quiet)
    switched = benchmark.input(page.switch_benchmark, controls, controls, queue=False, **latest)
    switched.then(page.describe, controls, described, queue=False, **latest)
    drawn_switched = switched.then(page.draw, controls, drawn, **latest)

    played = [task, play, timer, *drawn, *described]
    ticked = timer.tick(page.tick, controls, played, trigger_mode="once", **quiet)
    clicked = play.click(page.play_or_pause, [play, *controls], played, trigger_mode="once", cancels=[ticked], **quiet)
    task.input(page.pause, outputs=[play, timer], queue=False, **quiet)

    # Not `change`, which programs' changes cause too, nor `release`, which the arrow keys do not.
    by_hand = [control.input for control in controls if control is not benchmark]
    # An older drawing that came late would stand in place of a newer one. Not in the event that draws: Gradio cancels
    # when an event's own function is done.
    older = [drawn_first, ticked, clicked]
    gr.on(by_hand, None, cancels=[*older, drawn_switched])
    gr.on(by_hand, page.describe, controls, described, queue=False, **latest)
    drawn_by_hand = gr.on(by_hand, page.draw, controls, drawn, **latest)
    benchmark.input(page.pause, outputs=[play, timer], queue=False, cancels=[*older, drawn_by_hand], **quiet)
    gr.on([control.change for control in controls], None, controls, js="showInUrl", **quiet)


def add_api(api: Api) -> None:
    gr.api(api.compare, api_name="compare")
    gr.api(api.results, api_name="results", queue=False)


def theme() -> gr.themes.Base:
    # Themes with a gr.themes.GoogleFont ask fonts.googleapis.com; the system's own fonts ask nobody.
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", radius_size="lg", **fonts)
    # A shade darker than the theme's, to be read with ease.
    return theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the models of a zoo in the browser.")
    parser.add_argument(
        "--zoo",
        type=Path,
        default=os.environ.get("GDZOO_ZOO"),
        metavar="FOLDER",
        help="a local zoo, as train.py writes it (default: $GDZOO_ZOO; without one, the Hub)",
    )
    parser.add_argument(
        "--namespace",
        # The Hub tells a Space who owns it.
        default=os.environ.get("GDZOO_NAMESPACE") or os.environ.get("SPACE_AUTHOR_NAME") or "gdzoo",
        help="user or organisation whose models are shown (default: $GDZOO_NAMESPACE, or a Space's owner, or gdzoo)",
    )
    args = parser.parse_args()
    if not NAMESPACE.fullmatch(args.namespace):
        parser.error(f"--namespace {args.namespace!r}: letters, digits, '-', '_' and '.'")
    if args.zoo and not args.zoo.is_dir():
        parser.error(f"--zoo {args.zoo}: there is no such folder")
    return args


def main() -> None:
    args = parse_args()
    zoo = Zoo(FolderSource(args.zoo, args.namespace) if args.zoo else HubSource(args.namespace))
    zoo.refresh()
    blocks = build(zoo)
    blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)
    blocks.launch(
        theme=theme(),
        css_paths=HERE / "style.css",
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        footer_links=["api", "settings"],
        ssr_mode=False,  # a second server, in Node, would take longer to start than the page
    )


if __name__ == "__main__":
    main()
