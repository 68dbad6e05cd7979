"""The same numbers on a CUDA device as on the CPU: scores, ablations, the scan, a training step,
curvature.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import small_models as small
import tiny_transformer as tiny
from eigen_phase.measure_curvature import next_token_hessian
from interp_core.loading import subject_of, transformer_of
from interp_core.mamba.selective_scan import fast_scan
from interp_core.measures.ablation import ablation_effects
from interp_core.measures.scores import attention_keys, score_heads

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

CLOSE = 1e-4  # float32 sums in another order


def on(device: str, name: str) -> PreTrainedModel:
    model = small.build(name)
    nn.Module.to(model, torch.device(device))
    return model


@pytest.mark.parametrize("name", small.ALL)
def test_scores_and_ablations_are_those_of_the_cpu(name: str) -> None:
    prompts = small.prompts()
    keys = attention_keys(prompts.pairs)
    scores, losses = {}, {}

    for device in ("cpu", "cuda"):
        subject = transformer_of(on(device, name), bos=0, name=name)
        found = score_heads(
            subject, prompts.tokens, prompts.pairs, keys, behaviour=True, contributions=True
        )
        scores[device] = {**found.heads, "loss": found.loss}
        losses[device] = ablation_effects(subject, prompts, [[(1, 1)], [(0, 2), (2, 0)]]).loss

    for score, values in scores["cpu"].items():
        assert np.allclose(scores["cuda"][score], values, atol=CLOSE, rtol=CLOSE), score
    assert np.allclose(losses["cuda"], losses["cpu"], atol=CLOSE, rtol=CLOSE)


def test_the_scan_and_its_gradients_are_those_of_the_cpu() -> None:
    ids = torch.as_tensor(small.prompts().tokens)
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}

    for device in ("cpu", "cuda"):
        model = on(device, "mamba")
        with fast_scan(model):
            loss = model(input_ids=ids.to(device), labels=ids.to(device)).loss
        loss.backward()
        slopes = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found[device] = loss.item(), slopes

    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=CLOSE)
    for name, slope in found["cpu"][1].items():
        assert torch.allclose(found["cuda"][1][name], slope, atol=CLOSE, rtol=1e-3), name


@pytest.mark.parametrize("name", ["gpt_neox", "mamba"])
def test_a_training_step_ends_where_the_cpus_does(name: str) -> None:
    ids = torch.as_tensor(small.prompts().tokens)
    after = {}

    for device in ("cpu", "cuda"):
        model = on(device, name)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(input_ids=ids.to(device), labels=ids.to(device)).loss.backward()
        optimizer.step()
        with torch.no_grad():
            after[device] = model(input_ids=ids.to(device), labels=ids.to(device)).loss.item()

    assert after["cuda"] == pytest.approx(after["cpu"], rel=1e-3)


def test_a_hessian_product_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    products = {}
    for device in ("cpu", "cuda"):
        model = tiny.tiny().to(device)
        operator = next_token_hessian(model, *tiny.some_batch(), micro_batch=3)
        vector = torch.randn(operator.size, generator=generator.manual_seed(0), dtype=torch.double)
        with model.explicit_attention():
            products[device] = operator(vector.to(device)).cpu()

    assert torch.allclose(products["cuda"], products["cpu"], atol=1e-9)


def test_a_mamba_as_a_subject_says_what_it_says_on_the_cpu() -> None:
    ids = small.prompts().tokens
    with torch.no_grad():
        cpu, cuda = (
            subject.logits(subject.ids(ids)).cpu()
            for subject in (subject_of(on(device, "mamba"), bos=0) for device in ("cpu", "cuda"))
        )
    assert torch.allclose(cuda, cpu, atol=CLOSE, rtol=1e-3)
