import pytest
import torch
from torch.optim import lr_scheduler as torchs

from fcn.model import FCN
from fcn.optim import batch_rule, constant_steps, learning_rate, parameter_groups


@pytest.mark.parametrize("trunk_factor", [1, 0.3])
def test_biases_and_norms_learn_twice_as_fast_without_decay_and_the_trunk_at_its_own_rate(trunk_factor):
    model = FCN(3, 16, "mobilenet_v1", width=0.25)
    groups = parameter_groups(model, 1e-3, 0.1, trunk_factor)
    assert len(groups) == (2 if trunk_factor == 1 else 4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {
        names[id(parameter)]: (group["lr"], group["lr_factor"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    for name, values in settings.items():
        is_vector = model.get_parameter(name).ndim == 1
        factor = (trunk_factor if name.startswith("backbone") else 1) * (2 if is_vector else 1)
        assert values == pytest.approx((factor * 1e-3, factor, 0 if is_vector else 0.1)), name
    assert set(names.values()) - settings.keys() == {"upscore2.weight", "upscore16.weight"}


def test_the_rate_of_each_step_is_fixed_or_the_poly_schedule_worked_by_hand():
    assert [learning_rate(0.1, "fixed", step, 4) for step in range(4)] == [0.1] * 4
    rates = [learning_rate(0.1, "poly", step, 4) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.0771890, 0.0535887, 0.0287175], rel=1e-5)  # 0.75, 0.5, 0.25 ** 0.9


def by_torch(schedule: str, iterations: int, warmup: int, cooldown: float) -> list[float]:
    """The rates of torch's own schedulers from 0.1 on, a warm-up chained with the schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    flat = iterations - round(cooldown * iterations)
    schedulers = {
        "fixed": lambda: [],
        "poly": lambda: [torchs.PolynomialLR(optimizer, iterations, power=0.9)],
        "cosine": lambda: [torchs.CosineAnnealingLR(optimizer, iterations)],
        "cooldown": lambda: [
            torchs.SequentialLR(
                optimizer,
                [
                    torchs.ConstantLR(optimizer, factor=1),
                    torchs.LinearLR(optimizer, 1, 0, total_iters=iterations - flat),
                ],
                [flat],
            )
        ],
    }[schedule]()
    if warmup:
        schedulers.append(torchs.LinearLR(optimizer, 1 / warmup, 1, total_iters=warmup - 1))
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["fixed", "poly", "cosine", "cooldown"])
def test_the_rates_are_those_of_torchs_schedulers(schedule, warmup):
    rates = [learning_rate(0.1, schedule, step, 20, warmup, 0.25) for step in range(20)]
    assert rates == pytest.approx(by_torch(schedule, 20, warmup, 0.25), rel=1e-9)
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("schedule", "expected"), [("fixed", 20), ("cooldown", 15), ("poly", 0), ("cosine", 0)]
)
def test_a_longer_run_has_exactly_the_same_rates_in_the_constant_steps(schedule, expected):
    short, long = ([learning_rate(0.1, schedule, step, n, 3, 0.25) for step in range(20)] for n in (20, 100))
    shared = constant_steps(schedule, 20, 0.25)
    assert shared == expected
    assert short[:shared] == long[:shared]
    assert (
        short[shared + 1 :] == [] or short[shared + 1] != long[shared + 1]
    )  # the first of a fall is the highest


@pytest.mark.parametrize(
    ("images", "factor", "momentum"), [(1, 1, 0.99), (2, 3.98, 0.9801), (4, 15.8, 0.9606), (8, 61.8, 0.9227)]
)
def test_the_batch_rule_gives_the_derived_figures(images, factor, momentum):
    lr, decayed = batch_rule(1e-10, 0.99, images)
    assert lr / 1e-10 == pytest.approx(factor, rel=3e-3)  # given to three digits
    assert decayed == pytest.approx(momentum, abs=5e-5)


CURVATURE = 2.0  # of the quadratic the tests below descend


def on_a_quadratic(lr: float, momentum: float, steps: int) -> float:
    """The position of torch's SGD on CURVATURE w^2 / 2 after some steps from 1."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum)
    for _ in range(steps):
        weight.grad = CURVATURE * weight.detach()
        optimizer.step()
    return weight.item()


def known_trajectory(lr: float, momentum: float, steps: int) -> float:
    """The same in closed form: each step multiplies (w, v) by a fixed matrix, many steps by its power."""
    step = torch.tensor([[1 - lr * CURVATURE, -lr * momentum], [CURVATURE, momentum]], dtype=torch.float64)
    return (torch.linalg.matrix_power(step, steps) @ torch.tensor([1.0, 0.0], dtype=torch.float64))[0].item()


@pytest.mark.parametrize("images", [2, 4, 8])
def test_on_a_quadratic_the_batch_rule_follows_the_run_of_one_image_a_step(images):
    lr, momentum, seen = 1e-5, 0.99, (400, 1600, 4000)
    single = [known_trajectory(lr, momentum, n) for n in seen]
    assert [on_a_quadratic(lr, momentum, n) for n in seen] == pytest.approx(single, rel=1e-9)
    assert single[0] > 0.5 > single[1] > single[2]  # it does descend
    ruled = [on_a_quadratic(*batch_rule(lr, momentum, images), n // images) for n in seen]
    assert ruled == pytest.approx(single, abs=0.01)
    unruled = [on_a_quadratic(lr, momentum, n // images) for n in seen]
    assert max(abs(a - b) for a, b in zip(unruled, single, strict=True)) > 0.2
