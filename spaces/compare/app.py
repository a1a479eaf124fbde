"""A Gradio app that compares samples of two continual-learning strategies after each task, from the same noise.

python spaces/compare/app.py --zoo zoo/     a local zoo (or GDZOO_ZOO=zoo/)
python spaces/compare/app.py                the models on the Hub of GDZOO_NAMESPACE, a Space's owner, or gdzoo
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from api import Api
from machine import limit_spinning
from markup import SIDES
from page import DESCRIBED, KEPT, PLAY, SHOWN, Page
from prompts import MAX_GUIDANCE
from quick_import import gradio as gr
from sources import NAMESPACE, FolderSource, HubSource
from view import MAX_SAMPLES, MAX_SEED, STEPS, VIEW_FIELDS, bounded_view
from zoo import Zoo

HERE = Path(__file__).parent
QUEUE_SIZE = 32
SECONDS_A_TASK = 1.5  # while playing
PICKERS = {"benchmark": "Benchmark", "seed": "Training seed", "left": "Left", "right": "Right"}
INTRODUCTION = """\
# Continual learning of diffusion models

A diffusion model learns a sequence of **tasks**, each with a few new classes or prompts, and must keep the earlier ones
without their images ([generative distillation](https://arxiv.org/abs/2311.14028)). The slider selects the task. All
samples are drawn from the *same noise*.
"""

html = partial(gr.HTML, apply_default_css=False)  # style.css has all styles
slider = partial(gr.Slider, 1, step=1, buttons=[], min_width=200)
dropdown = partial(gr.Dropdown, filterable=False)  # a text field would open the keyboard of a phone


def build(zoo: Zoo) -> gr.Blocks:
    """The page of a zoo that has been read. Its initial values need no event: published samples and results."""
    page = Page(zoo)
    view = bounded_view(zoo, {})
    setting = page.settings(view)
    with gr.Blocks(title="gdzoo: continual learning of diffusion models", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        notice = html(page.notice())
        with gr.Column(visible=bool(zoo.models)) as content:
            with gr.Row():
                pickers = [
                    # On a phone, each side has its own line.
                    dropdown(label=label, min_width=180 if name in SIDES else 120, elem_id=name, **setting[name])
                    for name, label in PICKERS.items()
                ]
            with gr.Row(equal_height=True):
                task = slider(label="After task", scale=5, elem_id="task", **setting["task"])
                play = gr.Button(PLAY, variant="primary", scale=1, min_width=110)
                timer = gr.Timer(SECONDS_A_TASK, active=False)
            described_values = dict(zip(DESCRIBED, page.described(view), strict=True))
            with gr.Row(elem_id="prompts"):
                # A text field with suggestions.
                prompt = gr.Dropdown(
                    label="Prompt", allow_custom_value=True, scale=5, min_width=240, **setting["prompt"]
                )
                guidance = slider(
                    label="Guidance scale", maximum=MAX_GUIDANCE, step=0.1, scale=2, **setting["guidance"]
                )
            note = html(described_values["prompt-note"], elem_id="prompt-note")
            with gr.Row(elem_id="comparison"):
                drawn = [html(value, elem_id=name) for name, value in zip(SHOWN, page.published(view), strict=True)]
            with gr.Row():
                noise_seed = gr.Number(
                    label="Noise seed", minimum=0, maximum=MAX_SEED, precision=0, min_width=140, **setting["noise_seed"]
                )
                samples = slider(label="Samples", maximum=MAX_SAMPLES, **setting["samples"])
                steps = dropdown(label="Sampling steps", choices=list(STEPS), min_width=140, **setting["steps"])
            gr.Markdown("## Metrics after each task")
            charts = html(described_values["charts"])
            table = html(described_values["table"])
            gr.Markdown("## Training and loading")
            origins = html(described_values["origins"])

        benchmark, seed, left, right = pickers
        # In the order of VIEW_FIELDS.
        controls = [benchmark, left, right, task, seed, noise_seed, samples, steps, prompt, guidance]
        described = [note, charts, table, origins]
        connect(page, blocks, [notice, content], controls, drawn, described, play, timer)
        add_api(Api(page))
    return blocks


def connect(page: Page, blocks: gr.Blocks, status, controls, drawn, described, play, timer) -> None:
    """Connect the events. Charts and text are updated at once, samples after drawing."""
    quiet = dict(api_visibility="private", show_progress="hidden")
    # Of the events that arrive while one runs, the last runs next. By default, `then` drops them.
    latest = quiet | dict(trigger_mode="always_last")
    benchmark, _, _, task, *_ = controls

    opened = blocks.load(page.open, outputs=[*status, *controls, *drawn, *described], queue=False, **quiet)
    drawn_first = opened.then(page.draw, controls, drawn, **quiet)
    played = [task, play, timer, *drawn, *described]
    ticked = timer.tick(page.tick, controls, played, trigger_mode="once", **quiet)
    clicked = play.click(page.play_or_pause, [play, *controls], played, trigger_mode="once", cancels=[ticked], **quiet)
    task.input(page.pause, outputs=[play, timer], queue=False, **quiet)

    # `change` is also fired by updates from the server, and `release` is not fired by the arrow keys.
    by_hand = [control.input for control in controls if control is not benchmark]
    gr.on(by_hand, page.describe, controls, described, queue=False, **latest)
    drawn_by_hand = gr.on(by_hand, page.draw, controls, drawn, **latest)

    # An older drawing that finishes late must not replace a newer one. Gradio runs the events of one trigger in turn,
    # and cancels at an event's start: the benchmark is switched after the playing has stopped.
    older = [drawn_first, ticked, clicked]
    benchmark.input(page.pause, outputs=[play, timer], queue=False, **latest)
    benchmark.input(None, cancels=[*older, drawn_by_hand])
    kept = [control for field, control in zip(VIEW_FIELDS, controls, strict=True) if field in KEPT]
    switched = benchmark.input(page.switch_benchmark, kept, controls, queue=False, **latest)
    switched.then(page.describe, controls, described, queue=False, **latest)
    drawn_switched = switched.then(page.draw, controls, drawn, **latest)
    gr.on(by_hand, None, cancels=[*older, drawn_switched])
    gr.on([control.change for control in controls], None, controls, js="showInUrl", **quiet)


def add_api(api: Api) -> None:
    gr.api(api.compare, api_name="compare")
    gr.api(api.results, api_name="results", queue=False)


def theme() -> gr.themes.Base:
    # Themes with a gr.themes.GoogleFont send requests to fonts.googleapis.com; system fonts need none.
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", radius_size="lg", **fonts)
    # Darker than the theme's, for legibility.
    return theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the models of a zoo in the browser.")
    parser.add_argument(
        "--zoo",
        type=Path,
        default=os.environ.get("GDZOO_ZOO"),
        metavar="FOLDER",
        help="a local zoo, the --output_dir of train.py (default: $GDZOO_ZOO, or else the Hub)",
    )
    parser.add_argument(
        "--namespace",
        # The Hub sets SPACE_AUTHOR_NAME to the owner of a Space.
        default=os.environ.get("GDZOO_NAMESPACE") or os.environ.get("SPACE_AUTHOR_NAME") or "gdzoo",
        help="user or organisation whose models are shown (default: $GDZOO_NAMESPACE, or a Space's owner, or gdzoo)",
    )
    args = parser.parse_args()
    if not NAMESPACE.fullmatch(args.namespace):
        parser.error(f"--namespace {args.namespace!r}: use letters, digits, '-', '_' and '.'")
    if args.zoo and not args.zoo.is_dir():
        parser.error(f"--zoo {args.zoo}: no such folder")
    return args


def main() -> None:
    args = parse_args()
    limit_spinning()  # before the first drawing imports torch
    zoo = Zoo(FolderSource(args.zoo, args.namespace) if args.zoo else HubSource(args.namespace))
    zoo.refresh()
    blocks = build(zoo)
    blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)
    blocks.launch(
        theme=theme(),
        css_paths=HERE / "style.css",
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        footer_links=["api", "settings"],
        ssr_mode=False,  # server-side rendering needs a Node server, which starts slowly
    )


if __name__ == "__main__":
    main()
