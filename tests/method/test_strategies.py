"""Each strategy's rehearsal, and the loss that weighs it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gdzoo.method.catalogue import STRATEGIES
from gdzoo.method.objective import Batch, Drawn, continual_loss, min_snr_weight, noised
from gdzoo.method.randomness import StepRandom
from gdzoo.method.sampling import Teacher
from gdzoo.method.strategies import Finetune, Past, Strategy, rehearses, strategy_class
from gdzoo.models.kinds import make_past
from gdzoo.models.unet import UNetStudent, create_scheduler, create_unet

FIELDS = {"replay_batch_size": 6}


def make_unet(seed):
    torch.manual_seed(seed)
    return create_unet("tiny", channels=1, resolution=8)


@pytest.fixture
def student():
    return make_unet(0)


@pytest.fixture
def teacher():
    return Teacher(make_unet(1), create_scheduler(), steps=2)


@pytest.fixture
def past(student, teacher):
    buffer = Drawn(torch.rand(10, 1, 8, 8) * 2 - 1)
    return make_past(UNetStudent(student, teacher.scheduler), teacher, buffer=buffer)


@pytest.fixture
def real(teacher):
    return noised(Drawn(torch.rand(4, 1, 8, 8) * 2 - 1), teacher.scheduler, random())


def predicts(unet):
    return lambda x_t, t, cond: unet(x_t, t).sample


def random(*key):
    return StepRandom(key or (5,), "cpu")


def rehearse(name, real, past, **fields):
    method = strategy_class(name)
    values = FIELDS | fields
    return method(**{f.name: values[f.name] for f in dataclasses.fields(method)})(real, past, random(9))


def teacher_says(teacher, batch):
    return teacher.unet(batch.x_t, batch.t).sample


def recovered(batch, scheduler):
    """x_0 of a noised batch whose target is the noise."""
    alpha_bar = scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    return (batch.x_t - (1 - alpha_bar).sqrt() * batch.target) / alpha_bar.sqrt(), alpha_bar


@pytest.mark.parametrize("name", ["finetune", "joint"])
def test_nothing_accompanies_the_real_batch(name, real, past):
    assert rehearse(name, real, past) is None


def test_a_strategy_has_a_rehearsal_if_it_has_a_call_of_its_own():
    class Mine(Finetune):
        def __call__(self, real, past, random):
            return real

    assert {name for name in STRATEGIES if not rehearses(strategy_class(name))} == {"finetune", "joint"}
    assert rehearses(Mine)


def test_joint_is_finetune_on_all_classes():
    assert strategy_class("joint").sees_all_classes
    assert not strategy_class("finetune").sees_all_classes


def test_experience_replay_noises_images_of_the_buffer(real, teacher, past):
    batch = rehearse("experience_replay", real, past)
    x_0, alpha_bar = recovered(batch, teacher.scheduler)
    clear = alpha_bar.flatten() > 0.01  # where the noise does not drown the image in rounding errors
    assert clear.any()
    for image in x_0[clear]:
        assert (past.buffer.x_0 - image).abs().flatten(1).amax(1).min() < 1e-4
    assert teacher.passes == 0


def test_replay_and_distillation_see_the_same_images_with_other_targets(real, teacher, past):
    replay = rehearse("generative_replay", real, past)
    assert teacher.passes == 6 * 2
    distilled = rehearse("generative_distillation", real, past)
    assert teacher.passes == 2 * (6 * 2) + 6
    assert torch.equal(replay.x_t, distilled.x_t) and torch.equal(replay.t, distilled.t)
    torch.testing.assert_close(distilled.target, teacher_says(teacher, distilled))
    assert abs(replay.target.std() - 1) < 0.2  # the noise
    x_0, alpha_bar = recovered(replay, teacher.scheduler)
    assert x_0[alpha_bar.flatten() > 0.01].abs().max() < 1.01  # an image


def test_gaussian_distillation_asks_the_teacher_about_pure_noise(real, teacher, past):
    batch = rehearse("gaussian_distillation", real, past)
    assert batch.x_t.shape == (6, 1, 8, 8) and abs(batch.x_t.std() - 1) < 0.2 and abs(batch.x_t.mean()) < 0.2
    torch.testing.assert_close(batch.target, teacher_says(teacher, batch))


def test_lwf_asks_the_teacher_about_the_real_batch(real, teacher, past):
    batch = rehearse("lwf", real, past)
    assert torch.equal(batch.x_t, real.x_t) and torch.equal(batch.t, real.t)
    torch.testing.assert_close(batch.target, teacher_says(teacher, real))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_targets_follow_the_prediction_type(prediction_type):
    scheduler = create_scheduler(prediction_type)
    x_0 = torch.rand(4, 1, 8, 8)
    batch = noised(Drawn(x_0), scheduler, random(3))
    eps = random(3).randn(4, 1, 8, 8)
    alpha_bar = scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    torch.testing.assert_close(batch.x_t, alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps)
    velocity = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    torch.testing.assert_close(batch.target, {"epsilon": eps, "sample": x_0, "v_prediction": velocity}[prediction_type])


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("finetune", "joint")])
@pytest.mark.parametrize("task", [2, 5])
def test_one_forward_on_both_halves_equals_two(name, task, student, real, past):
    rehearsal = rehearse(name, real, past)
    one = continual_loss(predicts(student), real, rehearsal, task, replay_weight=0.75)
    one.backward()
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    halves = [F.mse_loss(student(batch.x_t, batch.t).sample, batch.target.clone()) for batch in (real, rehearsal)]
    two = halves[0] / task + (1 - 1 / task) * 0.75 * halves[1]
    two.backward()
    torch.testing.assert_close(one, two)
    for gradient, parameter in zip(gradients, student.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name, images", [("finetune", 4), ("generative_distillation", 10), ("lwf", 4)])
def test_the_student_sees_each_image_once(name, images, student, real, past):
    seen = []
    student.register_forward_pre_hook(lambda unet, inputs: seen.append(len(inputs[0])))
    continual_loss(predicts(student), real, rehearse(name, real, past), 2, replay_weight=0.75)
    assert seen == [images]


def test_without_rehearsal_the_loss_is_plain_mse(student, real):
    expected = F.mse_loss(student(real.x_t, real.t).sample, real.target)
    for task in (1, 4):
        torch.testing.assert_close(continual_loss(predicts(student), real, None, task, replay_weight=0.75), expected)


def test_the_teacher_gets_no_gradient(student, teacher, real, past):
    continual_loss(predicts(student), real, rehearse("generative_distillation", real, past), 2, 1.0).backward()
    assert all(parameter.grad is None for parameter in teacher.unet.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_weights(prediction_type, zero_snr):
    scheduler = create_scheduler(prediction_type, zero_snr)
    t = torch.tensor([0, 100, 999])
    weights = min_snr_weight(scheduler, 5.0, t)
    assert weights.isfinite().all()
    alpha_bar = scheduler.alphas_cumprod[t[:2]]
    snr = alpha_bar / (1 - alpha_bar)
    divisor = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction_type]
    torch.testing.assert_close(weights[:2], snr.clamp(max=5) / divisor, rtol=1e-4, atol=0)


def test_a_strategy_of_ones_own_by_its_dotted_path():
    assert strategy_class("tests.method.test_strategies.Halved") is Halved
    with pytest.raises(ValueError, match="choose from joint, generative_distillation"):
        strategy_class("generative_repaly")
    with pytest.raises(ValueError, match="cannot be imported"):
        strategy_class("tests.method.test_strategies.Missing")


@dataclasses.dataclass(frozen=True)
class Halved(Strategy):
    """A strategy as a user would write it: rehearse on half of the real batch."""

    def __call__(self, real: Batch, past: Past, random: StepRandom) -> Batch:
        return real.rows(slice(len(real.t) // 2))
