import subprocess
import sys

import pytest
import torch

from fcn.model import FCN
from fcn.optim import batch_rule, parameter_groups, without_compiler


def test_biases_learn_twice_as_fast_without_decay_and_fixed_kernels_not_at_all():
    model = FCN(3, 8, width=1 / 64)
    weights, biases = parameter_groups(model, 1e-3, 5e-4)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (weights["lr"], weights["weight_decay"]) == (1e-3, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-3, 0)
    assert {names[id(p)].rpartition(".")[2] for p in weights["params"]} == {"weight"}
    assert {names[id(p)].rpartition(".")[2] for p in biases["params"]} == {"bias"}
    grouped = {names[id(p)] for group in (weights, biases) for p in group["params"]}
    assert set(names.values()) - grouped == {"upscore2.weight", "upscore_pool4.weight", "upscore8.weight"}


def test_the_trunk_may_learn_at_a_rate_of_its_own():
    model = FCN(3, 16, backbone="mobilenet_v1", width=0.25)
    groups = parameter_groups(model, 1e-3, 0.1, trunk_lr_factor=0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["lr_factor"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    for name, values in found.items():
        is_trunk, is_vector = name.startswith("backbone"), model.get_parameter(name).ndim == 1
        factor = (0.3 if is_trunk else 1) * (2 if is_vector else 1)
        assert values == pytest.approx((factor * 1e-3, factor, 0 if is_vector else 0.1)), name
    assert len(groups) == 4
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_batch_norms_scales_do_not_decay():
    model = FCN(3, 32, width=1 / 64, batch_norm=True)
    names = {id(p): name for name, p in model.named_parameters()}
    weights, _ = parameter_groups(model, 1.0, 0.1)
    assert not any("bn" in names[id(p)] for p in weights["params"])


@pytest.mark.parametrize(
    ("images", "factor", "momentum"), [(1, 1, 0.99), (2, 3.98, 0.9801), (4, 15.8, 0.9606), (8, 61.8, 0.9227)]
)
def test_the_batch_rule_gives_the_derived_figures(images, factor, momentum):
    lr, found = batch_rule(1e-10, 0.99, images)
    assert lr / 1e-10 == pytest.approx(factor, rel=3e-3)  # given to three digits
    assert found == pytest.approx(momentum, abs=5e-5)


def test_under_a_constant_gradient_the_batch_rule_moves_as_far_per_image():
    def moved(num_images: int, steps: int) -> float:
        lr, momentum = batch_rule(1e-3, 0.9, num_images)
        weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum)
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return -weight.item()

    # In the long run, images of a step count alike: slopes over the last 400 images
    one = moved(1, 2000) - moved(1, 1600)
    four = moved(4, 500) - moved(4, 400)
    assert four == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_without_the_compiler_an_optimizer_takes_the_very_same_steps(name):
    def trained(optimizer: type[torch.optim.Optimizer]) -> tuple[torch.Tensor, dict]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        steps = optimizer(layer.parameters(), lr=0.1, weight_decay=0.01)  # pyright: ignore
        for _ in range(3):
            steps.zero_grad()
            layer(torch.ones(2, 5)).square().sum().backward()
            steps.step()
        steps.load_state_dict(steps.state_dict())
        return layer.weight.detach(), steps.state_dict()

    torch_s = getattr(torch.optim, name)
    (ours, state), (theirs, expected) = trained(without_compiler(torch_s)), trained(torch_s)
    assert torch.equal(ours, theirs)
    assert state.keys() == expected.keys()


def test_without_the_compiler_a_step_imports_none():
    code = """
import sys, torch
from fcn.optim import without_compiler
layer = torch.nn.Linear(2, 2)
optimizer = without_compiler(torch.optim.SGD)(layer.parameters(), lr=0.1, fused=True)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", done


CURVATURE = 2.0  # of the quadratic the tests below descend


def on_a_quadratic(lr: float, momentum: float, steps: int) -> float:
    """Where torch's SGD stands on CURVATURE w^2 / 2 after so many steps from 1."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum)
    for _ in range(steps):
        weight.grad = CURVATURE * weight.detach()
        optimizer.step()
    return weight.item()


def known_trajectory(lr: float, momentum: float, steps: int) -> float:
    """The same in closed form: (w, v) is multiplied by a fixed matrix each step, so by its power after many."""
    step = torch.tensor([[1 - lr * CURVATURE, -lr * momentum], [CURVATURE, momentum]], dtype=torch.float64)
    return (torch.linalg.matrix_power(step, steps) @ torch.tensor([1.0, 0.0], dtype=torch.float64))[0].item()


@pytest.mark.parametrize("images", [2, 4, 8])
def test_on_a_quadratic_the_batch_rule_follows_the_run_of_one_image_a_step(images):
    lr, momentum, seen = 1e-5, 0.99, (400, 1600, 4000)
    one = [known_trajectory(lr, momentum, n) for n in seen]
    assert [on_a_quadratic(lr, momentum, n) for n in seen] == pytest.approx(one, rel=1e-9)
    assert one[0] > 0.5 > one[1] > one[2]  # it does descend
    ruled = [on_a_quadratic(*batch_rule(lr, momentum, images), n // images) for n in seen]
    assert ruled == pytest.approx(one, abs=0.01)
    unruled = [on_a_quadratic(lr, momentum, n // images) for n in seen]
    assert max(abs(a - b) for a, b in zip(unruled, one, strict=True)) > 0.2
