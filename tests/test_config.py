"""Settings: where their values come from, which are refused, and what is published of them."""

import json
import os
import re
import shlex
import sys
from dataclasses import fields, replace

import pytest
from diffusers.optimization import SchedulerType

from gdzoo import train
from gdzoo.arguments import MOST_USED, make_parser, parse_args
from gdzoo.config import LR_SCHEDULERS, ConfigError, TrainConfig
from gdzoo.data.benchmarks import BENCHMARKS
from gdzoo.evaluation.published import published_config
from gdzoo.method.catalogue import STRATEGIES
from gdzoo.method.recipes import best_recipe
from gdzoo.method.strategies import strategy_class
from tests.conftest import ROOT

GROUPS = ("data", "method", "model", "training", "evaluation", "output", "Hub")
CUSTOM = dict(dataset_name="org/My.photo_set", tasks="0,1;2", resolution=32)


def refusal(**settings) -> str:
    """The one line in which `resolve` refuses settings."""
    with pytest.raises(ConfigError) as refused:
        TrainConfig(**settings).resolve()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def command_line(tmp_path, monkeypatch, capsys):
    """Runs a command line that must be refused in an empty folder; returns the line on stderr."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*argv: str) -> str:
        try:
            code = train.main(list(argv))
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        assert code == 2
        assert printed.err.startswith("gdzoo: ") and printed.err.count("\n") == 1, printed.err
        assert not printed.out
        assert not list(folder.iterdir())
        return printed.err

    return run


# ---- defaults ----


def test_no_setting_at_all_is_the_digits():
    config = TrainConfig().resolve()
    assert (config.benchmark, config.model, config.resolution, config.seed) == ("split-digits", "tiny", 8, 42)
    assert config.strategy == ["generative_replay", "generative_distillation"]
    assert (config.max_train_steps, config.learning_rate, config.use_ema) == (400, 1e-3, True)
    assert config.namespace == "gdzoo"


def test_recipe_gives_way_to_what_is_set():
    config = TrainConfig(benchmark="split-cifar", random_flip=False, replay_weight=0, max_train_steps=3).resolve()
    assert (config.random_flip, config.replay_weight, config.max_train_steps) == (False, 0.0, 3)
    assert config.train_batch_size == 64


def test_replay_batch_is_as_large_as_the_real_one():
    assert TrainConfig(train_batch_size=7).resolve().replay_batch_size == 7
    assert TrainConfig(train_batch_size=7, replay_batch_size=3).resolve().replay_batch_size == 3


@pytest.mark.parametrize("settings", [{}, {"benchmark": "split-cifar100"}, CUSTOM])
def test_resolving_twice_changes_nothing(settings):
    config = TrainConfig(**settings).resolve()
    assert config.resolve() == config


def test_resolve_leaves_the_original_alone():
    config = TrainConfig()
    config.resolve()
    assert config == TrainConfig()


def test_own_data_set():
    config = TrainConfig(**CUSTOM, image_column="photo").resolve()
    benchmark = config.get_benchmark()
    assert config.benchmark == benchmark.name == "split-my-photo-set"
    assert (benchmark.dataset_name, benchmark.tasks, benchmark.resolution) == ("org/My.photo_set", "0,1;2", 32)
    assert (benchmark.image_column, benchmark.label_column, benchmark.channels) == ("photo", None, None)
    assert TrainConfig(**CUSTOM, benchmark="mine").resolve().benchmark == "mine"


def test_named_benchmark_with_other_settings():
    config = TrainConfig(benchmark="split-cifar100", label_column="coarse_label", tasks=" 4 ", resolution=64).resolve()
    benchmark = config.get_benchmark()
    assert (benchmark.label_column, benchmark.tasks, benchmark.resolution) == ("coarse_label", 4, 64)
    assert (benchmark.image_column, benchmark.channels) == ("img", 3)


@pytest.mark.parametrize("name", ["digits", "me/mnist", "someone/CIFAR", "x/fashion_mnist"])
def test_own_data_set_with_the_name_of_a_benchmark_keeps_its_own_data(name):
    config = TrainConfig(**CUSTOM | dict(dataset_name=name)).resolve()
    assert config.benchmark.startswith("split-own-") and config.benchmark not in BENCHMARKS
    assert config.get_benchmark().dataset_name == name
    assert parse_args(shlex.split(config.command())[3:]).resolve() == config
    assert published_config(config.chain("lwf").to_dict()).get_benchmark() == config.get_benchmark()


def test_each_of_several_data_sets_is_a_task(tmp_path, monkeypatch):
    (tmp_path / "private" / "My dogs").mkdir(parents=True)
    folder = str(tmp_path / "private" / "My dogs")
    settings = dict(task_datasets=[folder, "me/birds"], resolution=16, model="tiny")
    config = TrainConfig(**settings).resolve()
    assert (config.benchmark, config.class_order, config.recipe) == ("split-my-dogs", "dataset", "best")
    assert config.to_dict()["task_datasets"] == ["./My dogs", "me/birds"]
    assert str(tmp_path) not in config.command() and "--task_datasets './My dogs' me/birds" in config.command()
    assert config.get_benchmark().dataset_name == "My dogs, me/birds"
    again = published_config(json.loads(json.dumps(config.chain("lwf").to_dict())))  # the folder may be elsewhere
    assert again.task_datasets == ["./My dogs", "me/birds"]
    assert parse_args(shlex.split(config.command())[3:]).resolve().run_id() == config.run_id()
    assert TrainConfig(**settings, benchmark="pets").resolve().benchmark == "pets"
    assert TrainConfig(**settings | dict(task_datasets=["me/mnist"])).resolve().benchmark == "split-own-mnist"
    monkeypatch.chdir(tmp_path / "private" / "My dogs")
    assert TrainConfig(**settings | dict(task_datasets=["."])).resolve().to_dict()["task_datasets"] == ["./My dogs"]


@pytest.mark.parametrize(
    "name, benchmark",
    [("Ünï", "split-uni"), ("日本", "split-own"), ("x" * 200, f"split-{'x' * 50}"), ("a..b__c", "split-a-b-c")],
)
def test_the_name_of_any_folder_becomes_one_of_the_hub(tmp_path, name, benchmark):
    (tmp_path / name).mkdir()
    settings = dict(task_datasets=[str(tmp_path / name)], resolution=16, model="tiny")
    assert TrainConfig(**settings).resolve().benchmark == benchmark


# ---- recipes ----

BEST = dict(replay_pool=1280, replay_pool_steps=20, snr_gamma=5.0, prediction_type="v_prediction", use_ema=True)
BEST |= dict(ema_decay=0.98, replay_pool_balanced=True, recipe="best")


def of(config: TrainConfig, names) -> dict:
    return {name: getattr(config, name) for name in names}


def test_the_benchmarks_keep_the_recipe_of_the_paper():
    for benchmark in BENCHMARKS:
        config = TrainConfig(benchmark=benchmark).resolve()
        assert (config.recipe, config.replay_pool, config.snr_gamma) == ("paper", 0, None)
        assert (config.prediction_type, config.rescale_betas_zero_snr) == ("epsilon", False)
    assert of(TrainConfig(recipe="best").resolve(), BEST) == BEST


def test_the_best_recipe_fits_the_task():
    """At most as many passes of the teacher as the paper's two DDIM steps for every replay image."""
    for steps, batch_size in [(1, 1), (4, 16), (4, 64), (400, 32), (800, 32), (1000, 32), (10_000, 64), (31_400, 64)]:
        values = best_recipe(steps, batch_size)
        assert 1 <= values["replay_pool"] <= 10_240
        assert values["replay_pool"] * values["replay_pool_steps"] <= max(20, 2 * steps * batch_size)
        assert 0 <= values["ema_decay"] <= 0.9999
    assert best_recipe(1000, 32)["replay_pool"] == 3072  # the pools of the figures in RESULTS.md
    assert best_recipe(800, 32)["replay_pool"] == 2560
    assert best_recipe(31_400, 64, most_images=500)["replay_pool"] == 256
    large = TrainConfig(**CUSTOM | dict(resolution=256)).resolve()  # 0.5 GB of pixels at most, also in each checkpoint
    assert large.replay_pool * 3 * 256**2 <= 5e8 and large.replay_pool >= 2048
    config = TrainConfig(**CUSTOM, max_train_steps=4, train_batch_size=8, gradient_accumulation_steps=2).resolve()
    assert (config.recipe, config.replay_pool, config.ema_decay) == ("best", 6, 0.0)


def test_single_flags_win_over_the_recipe():
    given = dict(replay_pool=7, replay_pool_steps=5, snr_gamma=0.0, prediction_type="sample", use_ema=False)
    given |= dict(ema_decay=0.5, replay_pool_balanced=False)
    for recipe in ("paper", "best"):
        assert of(TrainConfig(recipe=recipe, **given).resolve(), given) == given
    assert TrainConfig(recipe="best", replay_pool=0).resolve().replay_pool_balanced is False
    assert TrainConfig(recipe="best", evaluator="none").resolve().replay_pool_balanced is False


def test_the_best_recipe_leaves_min_snr_out_with_flow_matching():
    config = TrainConfig(recipe="best", prediction_type="flow").resolve()
    assert config.snr_gamma is None and config.replay_pool and config.use_ema
    assert "--prediction_type flow" in config.command() and "snr" not in config.command()
    assert TrainConfig(recipe="best", prediction_type="flow", snr_gamma=0).resolve().snr_gamma == 0


def test_flow_matching_takes_any_number_of_steps():
    steps = dict(eval_steps=28, replay_steps=3, replay_pool_steps=7)
    assert of(TrainConfig(prediction_type="flow", **steps).resolve(), steps) == steps


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(snr_gamma=5.0), "--snr_gamma 5 is for schedules of betas, whose loss is dominated by little noise"),
        (dict(recipe="best", snr_gamma=2.0), "--snr_gamma 2 is for schedules of betas"),
        (dict(replay_eta=0.5), "--replay_eta 0.5 is DDIM's: leave it out with --prediction_type flow"),
        (dict(rescale_betas_zero_snr=True), "--rescale_betas_zero_snr: leave it out with --prediction_type flow"),
    ],
)
def test_settings_of_betas_are_refused_with_flow_matching(settings, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        TrainConfig(prediction_type="flow", **settings).resolve()


def test_ones_own_data_and_model_take_the_best_recipe():
    assert TrainConfig(**CUSTOM).resolve().recipe == "best"
    config = TrainConfig(pretrained_model_name_or_path="me/model", tasks="5").resolve()
    assert (config.recipe, config.replay_pool, config.use_ema, config.replay_pool_balanced) == (
        "best",
        1280,
        True,
        False,
    )
    assert config.prediction_type is None and config.resolution is None and config.snr_gamma is None  # the model's own
    assert TrainConfig(**CUSTOM, recipe="paper").resolve().replay_pool == 0


def test_a_zoo_of_the_other_recipe_is_refused_by_its_name():
    paper, best = (TrainConfig(**CUSTOM, recipe=recipe).resolve() for recipe in ("paper", "best"))
    assert best.difference(paper.to_dict()) == "--recipe paper, not best"
    older = {name: value for name, value in paper.to_dict().items() if name not in ("recipe", "task_datasets")}
    assert best.difference(older) == "--recipe paper, not best" and paper.difference(older) == ""
    assert published_config(older).recipe == "paper"


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(recipe="best", strategy=["lwf"]),
        dict(recipe="best", replay_pool=512, snr_gamma=0),
        dict(benchmark="split-cifar", recipe="best", max_train_steps=50, seed=3),
        CUSTOM,
        CUSTOM | dict(recipe="paper", snr_gamma=5.0),
        dict(task_datasets=["me/cats", "me/dogs"], resolution=28, model="tiny", replay_batch_size=5),
    ],
    ids=str,
)
def test_the_command_trains_the_same_run(settings):
    config = TrainConfig(**settings).resolve()
    assert parse_args(shlex.split(config.command())[3:]).resolve().run_id() == config.run_id()


# ---- command line and file ----


def test_command_line_sets_every_kind_of_field():
    flags = "--strategy lwf joint --use_ema --no-random_flip --learning_rate 1e-4 --seed 7 --tasks 0,1;2"
    config = parse_args(flags.split())
    assert config == TrainConfig(
        strategy=["lwf", "joint"], use_ema=True, random_flip=False, learning_rate=1e-4, seed=7, tasks="0,1;2"
    )


def test_command_line_wins_over_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "seed: 7\nstrategy: [lwf, joint]\nlearning_rate: 1e-4\nuse_ema: false\nmixed_precision: no\n"
        "tasks: 0,1;2\nbenchmark: split-cifar\nreport_to:\n"
    )
    expected = TrainConfig(
        seed=7,
        strategy=["lwf", "joint"],
        learning_rate=1e-4,
        use_ema=False,
        mixed_precision="no",
        tasks="0,1;2",
        benchmark="split-cifar",
    )
    assert parse_args(["--config", str(file)]) == expected
    overridden = parse_args(["--seed", "8", "--config", str(file), "--strategy", "finetune", "--use_ema"])
    assert overridden == replace(expected, seed=8, strategy=["finetune"], use_ema=True)


def test_values_of_a_file_are_read_as_on_the_command_line(tmp_path):
    """YAML itself would read a number, a date or False here."""
    file = tmp_path / "run.yaml"
    file.write_text("tasks: 5\ndataset_config_name: 2020-12-01\nmixed_precision: no\nseeds: [1, 2]\nstrategy: lwf\n")
    words = ["--tasks", "5", "--dataset_config_name", "2020-12-01", "--mixed_precision", "no", "--seeds", "1", "2"]
    assert parse_args(["--config", str(file)]) == parse_args([*words, "--strategy", "lwf"])


def test_empty_file_is_no_setting(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert parse_args(["--config", str(tmp_path / "empty.yaml")]) == TrainConfig()


def test_the_settings_of_the_small_cifar_can_be_used():
    config = parse_args(["--config", str(ROOT / "tests/benchmarks/cifar16.yaml"), "--seeds", "42", "69"]).resolve()
    assert config.get_benchmark().dataset_name == "uoft-cs/cifar10" and config.resolution == 16
    assert (config.model, config.max_train_steps, config.eval_samples) == ("tiny", 1000, 10_000)


@pytest.mark.parametrize(
    "content, said",
    [
        ("sed: 7", "'sed'"),
        ("seed: seven", "--seed"),
        ("seed: [1, 2]", "seed takes one value, not a list"),
        ("use_ema: perhaps", "use_ema takes true or false, not 'perhaps'"),
        ("max_train_steps: 2.5", "--max_train_steps"),
        ("strategy: []", "--strategy"),
        ("- seed", "seed: 42"),
        ("seed: [", "line 1"),
        ("seeds: [1, two]", "--seeds"),
        ("use_ema: {on: true}", "use_ema takes one value, not a mapping"),
        (None, "No such file"),
    ],
)
def test_bad_file_is_named(command_line, tmp_path, content, said):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    message = command_line("--config", str(file))
    assert f"--config {file}" in message
    assert said in message


def test_help_shows_every_flag_once_and_the_most_used_ones_first():
    lines = make_parser().format_help().splitlines()
    assert lines[0] == "usage: accelerate launch gdzoo/train.py [--FLAG VALUE ...]" and not lines[1]
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == [f"{name}:" for name in ("most used", *GROUPS)]
    flags = [line.split()[0].strip(",") for line in lines if line.startswith("  -")]
    assert flags[: len(MOST_USED) + 2] == [*(f"--{name}" for name in MOST_USED), "--config", "-h"]
    assert sorted(flags) == sorted([*(f"--{spec.name}" for spec in fields(TrainConfig)), "--config", "-h"])
    assert all(spec.metadata["help"] for spec in fields(TrainConfig))
    for spec in fields(TrainConfig):
        if spec.name not in MOST_USED:
            above = [line for line in lines[: lines.index(flag_line(lines, spec.name))] if line in groups]
            assert above[-1] == f"{spec.metadata['group']}:"


def flag_line(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith("  -") and line.split()[0].strip(",") == f"--{name}")


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == make_parser().format_help()


# ---- bad input ----

COUNTS = [spec for spec in fields(TrainConfig) if spec.metadata["minimum"] is not None]


@pytest.mark.parametrize("spec", COUNTS, ids=lambda spec: spec.name)
def test_too_small_numbers(spec):
    too_small = spec.metadata["minimum"] - 1
    assert refusal(**{spec.name: too_small}).startswith(f"--{spec.name} {too_small}")


ABOVE_ZERO = (
    "replay_steps replay_batch_size buffer_size train_batch_size gradient_accumulation_steps max_train_steps"
    " learning_rate evaluator_steps eval_samples eval_steps eval_batch_size resolution"
)


@pytest.mark.parametrize("flag", ABOVE_ZERO.split())
def test_zero(flag):
    assert refusal(**{flag: 0}).startswith(f"--{flag} 0")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("flag", ["learning_rate", "replay_weight", "replay_eta", "cache_limit_gb", "snr_gamma"])
def test_numbers_that_are_not_finite(flag, value):
    assert refusal(**{flag: value}).startswith(f"--{flag}")


@pytest.mark.parametrize(
    "settings",
    [
        dict(replay_steps="2"),
        dict(replay_steps=2.0),
        dict(seed=True),
        dict(use_ema=1),
        dict(learning_rate="1e-3"),
        dict(strategy=[1]),
        dict(tasks=5),
        dict(benchmark=["split-digits"]),
        dict(seed=None),
        dict(output_dir=None),
    ],
    ids=str,
)
def test_wrong_types_from_python(settings):
    assert refusal(**settings).startswith(f"--{next(iter(settings))} ")


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(benchmark="split-mars"), "--benchmark split-mars: choose from split-digits"),
        (dict(benchmark="split cifar", **CUSTOM), "--benchmark 'split cifar'"),
        (dict(benchmark="split-cifar", **CUSTOM), "leave out --dataset_name"),
        (CUSTOM | dict(resolution=None), "--dataset_name needs --resolution"),
        (dict(task_datasets=["me/cats"]), "--task_datasets needs --resolution"),
        (dict(task_datasets=["no/such/folder"]), "--task_datasets no/such/folder: there is no such folder"),
        (dict(task_datasets=["me/cats", "me/cats"]), "each needs a name of its own"),
        (dict(task_datasets=["me/cats"], tasks="2"), "--tasks does not go with --task_datasets"),
        (CUSTOM | dict(task_datasets=["me/cats"]), "--dataset_name does not go with --task_datasets"),
        (dict(task_datasets=["me/cats"], benchmark="split-mnist"), "leave out --task_datasets or rename"),
        (CUSTOM | dict(dataset_name=""), "--dataset_name is empty"),
        (dict(task_datasets=[""]), "--task_datasets is empty"),
        (dict(recipe="worst"), "--recipe worst: choose from paper, best"),
        (CUSTOM | dict(dataset_name="/data/photos"), "--dataset_root DIR --dataset_name NAME"),
        (CUSTOM | dict(dataset_name="../photos"), "--dataset_root DIR --dataset_name NAME"),
        (dict(resolution=31, benchmark="split-cifar"), "--resolution 31: --model cifar needs a multiple of 8"),
        (dict(tasks="0,1;2", class_order="0-9"), "--class_order and --tasks both"),
        (dict(replay_steps=3), "--replay_steps 3 does not divide the 1000 timesteps"),
        (dict(replay_steps=2000), "--replay_steps 2000 does not divide"),
        (dict(eval_steps=7), "--eval_steps 7 does not divide"),
        (dict(replay_eta=1.5), "--replay_eta 1.5: it is at most 1"),
        (dict(seed=2**32), "--seed 4294967296: it is at most 4294967295"),
        (dict(ema_decay=1.0), "--ema_decay 1.0"),
        (dict(model="huge"), "--model huge: choose from tiny"),
        (dict(prediction_type="noise"), "--prediction_type noise: choose from epsilon"),
        (dict(lr_scheduler="piecewise_constant"), "--lr_scheduler piecewise_constant: choose from"),
        (dict(mixed_precision="int4"), "--mixed_precision int4: choose from no"),
        (dict(strategy=[]), "--strategy"),
        (dict(strategy=["lwf", "lwf"]), "--strategy names each strategy once"),
        (dict(strategy=["finetune", "gdzoo.method.strategies.Finetune"]), "--strategy names each strategy once"),
        (dict(strategy=["magic"]), "--strategy 'magic': choose from joint"),
        (dict(strategy=["joint"], pretrained_model_name_or_path="me/model"), "--strategy joint needs the real images"),
        (dict(chains="0/8"), "--chains 0/8: choose from 1/8 to 8/8"),
        (dict(chains="9/8"), "--chains 9/8: choose from 1/8 to 8/8"),
        (dict(chains="3/0"), "--chains '3/0': say which of how many shares, e.g. 3/8"),
        (dict(chains="3"), "--chains '3': say which"),
        (dict(chains="-1/8"), "--chains '-1/8': say which"),
        (dict(chains="a/b"), "--chains 'a/b': say which"),
        (dict(chains="1/٢"), "--chains '1/٢': say which"),
        (dict(chains="1/" + "9" * 5000), "say which"),
        (dict(chains="1/" + "0" * 5000 + "1"), "say which"),
        (dict(chains="3/8", overwrite_output_dir=True), "--overwrite_output_dir would delete what other shares"),
        (dict(report_to="mlflow"), "--report_to mlflow: choose from tensorboard"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_refused_settings(settings, said):
    assert said in refusal(**settings)


def test_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(report_to="trackio") == '--report_to trackio is not installed: pip install "gdzoo[trackio]"'


MINE = """
from dataclasses import dataclass
from gdzoo.method.strategies import Strategy

class Foreign:
    def __call__(self, real, past, random):
        return None

class Plain(Strategy):
    replay_steps: int
    def __call__(self, real, past, random):
        return None

@dataclass(frozen=True)
class Asks(Strategy):
    temperature: float
    def __call__(self, real, past, random):
        return None

@dataclass(frozen=True)
class Silent(Strategy):
    pass

@dataclass(frozen=True)
class Short(Strategy):
    def __call__(self, real):
        return None

@dataclass(frozen=True)
class Hoards(Strategy):
    uses_buffer = True
    def __call__(self, real, past, random):
        return None
"""


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "my_wrong.Foreign",
            "'my_wrong.Foreign' is no strategy: derive the class from gdzoo.method.strategies.Strategy",
        ),
        ("my_wrong.Plain", r"'my_wrong.Plain' is no dataclass: decorate the class with @dataclass\(frozen=True\)"),
        ("my_wrong.Asks", "'my_wrong.Asks': its fields must be settings or have defaults .* 'temperature'"),
        ("my_wrong.Silent", r"'my_wrong.Silent' has no __call__\(real, past, random\)"),
        ("my_wrong.Hoards", "my_wrong.Hoards needs the real images of all tasks; a pretrained model has none"),
        ("my_wrong.Missing", "'my_wrong.Missing' cannot be imported .AttributeError: "),
        ("gdzoo.method.strategies.Magic", "'gdzoo.method.strategies.Magic' cannot be imported"),
        (".my_wrong.Plain", "'.my_wrong.Plain' cannot be imported"),
        ("./my_wrong.Plain", "'./my_wrong.Plain' cannot be imported"),
        ("elsewhere.Mine", "'elsewhere.Mine' cannot be imported .ModuleNotFoundError: .*; for .* set PYTHONPATH=."),
        ("my_torn.Mine", "'my_torn.Mine' cannot be imported .SyntaxError: "),
        ("my_wrong.Short", r"'my_wrong.Short': its __call__ must take \(real, past, random\)"),
    ],
)
def test_a_strategy_that_cannot_work_is_said_before_work(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_wrong.py").write_text(MINE)
    (tmp_path / "my_torn.py").write_text("def\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(strategy=[name], tasks="2", pretrained_model_name_or_path="me/model").resolve()
    with pytest.raises(ConfigError, match=f"--strategy {message}") as error:
        config.check_strategies()
    assert "\n" not in str(error.value)


def test_a_home_that_the_shell_left_is_found():
    config = TrainConfig(output_dir="~/zoo", dataset_root="~/data").resolve()
    assert config.output_dir == os.path.expanduser("~/zoo") and config.dataset_root == os.path.expanduser("~/data")


def test_strategy_from_a_package_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text("from gdzoo.method.strategies import Finetune as Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(strategy=["my_methods.Mine"]).resolve()
    config.check_strategies()
    assert config.strategy == ["my_methods.Mine"]


def test_the_catalogue_says_which_strategies_keep_images():
    for name, info in STRATEGIES.items():
        found = strategy_class(name)
        assert info.keeps_images == (found.sees_all_classes or found.uses_buffer), name


def test_all_schedules_of_diffusers_but_one_are_known():
    assert {*LR_SCHEDULERS, "piecewise_constant"} == {schedule.value for schedule in SchedulerType}


def test_a_share_of_the_chains():
    assert TrainConfig().resolve().share == (1, 1)
    assert TrainConfig(chains="3/8").resolve().share == (3, 8)
    assert TrainConfig(chains="08/08").resolve().share == (8, 8)  # as a script may count


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--benchmark split-mars", "--benchmark split-mars"),
        ("--strategy magic", "--strategy 'magic'"),
        ("--seed seven", "--seed"),
        ("--learning_rate nan", "--learning_rate nan"),
        ("--no_such_flag 1", "--no_such_flag"),
        ("--replay_steps 3", "--replay_steps 3"),
        ("--max_train_steps", "--max_train_steps"),
        ("--chains 9/8", "--chains 9/8"),
        ("--strategy no_such_package.Magic", "--strategy 'no_such_package.Magic' cannot be imported"),
        ("--dataset_root no/such/folder", "--dataset_root no/such/folder: there is no such folder"),
        ("--evaluator ./nowhere", "--evaluator ./nowhere: there is no such folder"),
        ("--pretrained_model_name_or_path no/such/model --tasks 2", "no/such/model: there is no such folder"),
        ("--resume_from_checkpoint zoo/checkpoint-5", "--resume_from_checkpoint zoo/checkpoint-5: there is no"),
        # The data must be known for these.
        ("--tasks 0,1;1,2", "--tasks names 1 more than once"),
        ("--tasks 0,1;zebra", "'zebra'"),
        ("--tasks 3", "--tasks 3 does not divide the 10 classes"),
        ("--class_order 0-8", "--class_order leaves out 9"),
        ("--image_column photo", "--image_column photo"),
        ("--label_column kind", "--label_column kind"),
    ],
)
def test_refused_command_lines(command_line, arguments, said):
    assert said in command_line(*arguments.split())


# ---- what is published ----


def test_run_id_is_the_same_for_ever():
    config = TrainConfig(benchmark="split-digits", strategy=["joint"]).resolve()
    assert (
        config.run_id()
        == TrainConfig(strategy=["joint"]).resolve().run_id()
        == parse_args(["--strategy", "joint"]).resolve().run_id()
    )
    assert len(config.run_id()) == 8 and int(config.run_id(), 16) >= 0


def test_run_ids_of_older_versions_stay():
    assert TrainConfig(strategy=["joint"]).resolve().run_id() == "b598f383"
    assert TrainConfig(benchmark="split-cifar", strategy=["lwf"], seed=69).resolve().run_id() == "2ea34cbd"
    flags = dict(recipe="paper", replay_pool=1024, snr_gamma=5.0, prediction_type="v_prediction")
    own = TrainConfig(dataset_name="org/pets", tasks="0,1;2,3", resolution=32, **flags).resolve()
    assert own.run_id() == "719bb9ac"


def test_run_id_takes_whole_numbers_for_floats():
    assert TrainConfig(replay_weight=1).resolve().run_id() == TrainConfig(replay_weight=1.0).resolve().run_id()
    assert TrainConfig(strategy=("lwf",)).resolve().run_id() == TrainConfig(strategy="lwf").resolve().run_id()


CHANGED = dict(
    seed=7,
    strategy=["lwf"],
    learning_rate=0.5,
    max_train_steps=3,
    use_ema=False,
    tasks="2",
    class_order="seed",
    replay_steps=10,
    train_batch_size=3,
    model="fashion",
    benchmark="split-cifar",
    recipe="best",
    test_split="train",
    image_bits=12,
    prediction_type="sample",
    cache_limit_gb=0.1,
)
IRRELEVANT = dict(
    output_dir="elsewhere",
    overwrite_output_dir=True,
    dataset_root="mirror",
    dataloader_num_workers=3,
    eval_batch_size=3,
    hub_namespace="me",
    report_to="tensorboard",
    chains="3/8",
)


@pytest.mark.parametrize("flag", CHANGED)
def test_run_id_tells_results_apart(flag):
    assert TrainConfig(**{flag: CHANGED[flag]}).resolve().run_id() != TrainConfig().resolve().run_id()


@pytest.mark.parametrize("flag", IRRELEVANT)
def test_run_id_ignores_what_changes_no_result(flag):
    assert TrainConfig(**{flag: IRRELEVANT[flag]}).resolve().run_id() == TrainConfig().resolve().run_id()


def test_published_config_is_enough_to_train_again():
    config = TrainConfig(benchmark="split-cifar", seed=69, strategy=["lwf"]).resolve()
    again = TrainConfig(**json.loads(json.dumps(config.to_dict())))
    assert again.resolve().results_dict() == config.results_dict()


def test_published_config_names_nothing_of_this_machine(tmp_path):
    evaluator = tmp_path / "secret" / "my-evaluator"
    config = TrainConfig(**CUSTOM, output_dir="/secret/zoo", dataset_root="/secret", evaluator=str(evaluator)).resolve()
    published = config.to_dict()
    assert "secret" not in json.dumps(published)
    assert published["evaluator"] == config.results_dict()["evaluator"] == "my-evaluator"
    assert replace(config, evaluator="gdzoo/split-cifar-evaluator").to_dict()["evaluator"] == (
        "gdzoo/split-cifar-evaluator"
    )


def test_the_command_of_a_small_model_at_a_size_that_only_it_can_have():
    config = TrainConfig(dataset_name="org/pets", tasks="0,1;2,3", resolution=28, model="tiny").resolve()
    command = config.command()
    assert "--resolution 28" in command and "--model tiny" in command
    again = parse_args(shlex.split(command)[3:]).resolve()
    assert again.chain("joint").run_id() == config.chain("joint").run_id()


def test_chain_is_one_strategy():
    config = TrainConfig().resolve()
    assert config.chain("lwf") == replace(config, strategy=["lwf"])
