"""The mean divergence and its gradient in one pass, against logits in one piece."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pgolf import config as configs
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.gpt import GPT
from pgolf.model.raced_pairs import Shape
from pgolf.quant import divergence
from pgolf.runtime import Runtime


@pytest.mark.parametrize("in_c", [False, True])
def test_mean_divergence_and_its_gradients_are_the_direct_ones(in_c: bool, kernels: Runtime) -> None:
    torch.manual_seed(0)
    model = GPT(configs.load("mini").model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = copy.deepcopy(model)
    if in_c:
        paths_by_rule(model, kernels, Shape(3, 100, True, 1), scoring=True)
        assert model.scoring is not None
    student = copy.deepcopy(model).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    reference = copy.deepcopy(plain).train()
    reference.load_state_dict(student.state_dict())
    tokens = torch.randint(40, (3, 100))  # few of the pieces, so that documents and copies occur
    with torch.no_grad():
        wanted = plain.logits(plain.hidden(tokens)).log_softmax(-1)
    log_q = reference.logits(reference.hidden(tokens)).log_softmax(-1)
    right = F.kl_div(log_q, wanted, reduction="none", log_target=True).sum(-1).mean()
    found = divergence.mean(model, student, tokens)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)
    found.backward()
    right.backward()
    for (name, mine), theirs in zip(student.named_parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None, name
        assert theirs.grad is not None, name
        error = float((mine.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-6))
        assert error < 1e-3, (name, error)
