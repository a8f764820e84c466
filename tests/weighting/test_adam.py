"""The learned scalars' step against torch's Adam, and tasks that are absent from some steps."""

import pytest
import torch

from mtlcore_plugins.weighting._adam import START, adam_step


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.5])
def test_each_task_moves_as_by_an_adam_of_its_own_over_the_steps_it_is_in(betas, weight_decay):
    options = {"betas": betas, "weight_decay": weight_decay}
    values = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    optimizers = [torch.optim.Adam([value], lr=0.1, **options) for value in values]
    state = torch.tensor(START, dtype=torch.float64)[:, None].repeat(1, 4)
    draw = torch.Generator().manual_seed(0)
    for step in range(30):
        present = [task for task in range(4) if step % (task + 1) == 0]
        slopes = torch.randn(len(present), generator=draw, dtype=torch.float64)
        adam_step(state, present, slopes, learning_rate=0.1, **options)
        for task, slope in zip(present, slopes, strict=True):
            values[task].grad = slope[None]
            optimizers[task].step()
        expected = torch.cat([value.detach() for value in values])
        torch.testing.assert_close(state[0], expected, rtol=1e-12, atol=1e-14)
    assert state[3].tolist() == [30, 15, 10, 8]
