"""The flow against closed forms: paths with known velocity, equations with known solution."""

import math

import pytest
import torch

from sf_lightning.flow.guidance import DropConfig, guided, mix
from sf_lightning.flow.loss import flow_matching_loss
from sf_lightning.flow.path import draw_times, straight_path
from sf_lightning.flow.solver import MAX_SWAY, MIN_SWAY, TABLEAUS, Method, Solver, SolverState, sway_grid
from sf_lightning.model.blocks import Blocks


def test_the_path_starts_at_noise_ends_at_the_mel_and_its_velocity_points_to_the_mel() -> None:
    x_0, x_1 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    start, end = (straight_path(x_0, x_1, torch.tensor(t)) for t in (0.0, 1.0))
    assert torch.equal(start.x_t, x_0) and torch.allclose(end.x_t, x_1)
    middle = straight_path(x_0, x_1, torch.tensor(0.3))
    assert torch.allclose(middle.x_t + 0.7 * middle.dx_t, x_1, atol=1e-6)


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("steps", [1, 7])
def test_every_solver_is_exact_on_a_straight_path(method: Method, steps: int) -> None:
    x_0, x_1 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x = Solver(steps, method).integrate(lambda x, number: x_1 - x_0, x_0)
    torch.testing.assert_close(x, x_1, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_converge_with_their_order(method: Method, order: int) -> None:
    # dx/dt = x + t has the solution 2 e^t - t - 1 for x(0) = 1.
    exact = 2 * math.e - 2

    def error(steps: int) -> float:
        x_0 = torch.ones(1, dtype=torch.float64)
        solver = Solver(steps, method, sway=0.0)
        return abs(float(solver.integrate(lambda x, number: x + solver.times[number].double(), x_0)) - exact)

    assert math.log2(error(8) / error(16)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("method", "stages"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_call_the_network_num_evaluations_times(method: Method, stages: int) -> None:
    calls: list[int] = []

    def velocity(x: torch.Tensor, number: int) -> torch.Tensor:
        calls.append(number)
        return x

    solver = Solver(3, method)
    solver.integrate(velocity, torch.zeros(1))
    assert calls == list(range(3 * stages)) and solver.num_evaluations == len(calls) == len(solver.times)
    assert (0 <= solver.times).all() and (solver.times <= 1).all()


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_solver_resumes_after_any_evaluation_with_the_same_result(method: Method) -> None:
    solver = Solver(3, method)

    def velocity(x: torch.Tensor, number: int) -> torch.Tensor:
        return torch.sin(x) + solver.times[number]

    x_0 = torch.linspace(-1, 1, 5)
    progress = SolverState(x_0)
    for number in range(solver.num_evaluations):
        solver.advance(progress, velocity(solver.point(progress), number))
        progress = SolverState(progress.x.clone(), [v.clone() for v in progress.slopes], progress.evaluations)
    assert torch.equal(progress.x, solver.integrate(velocity, x_0))


def test_sway_makes_steps_denser_near_the_noise_and_keeps_both_ends() -> None:
    grid = sway_grid(10, -1.0)
    assert grid[0] == 0 and grid[-1] == pytest.approx(1)
    assert (grid.diff().diff() > 0).all()
    torch.testing.assert_close(sway_grid(4, 0.0), torch.linspace(0, 1, 5, dtype=torch.float64))


@pytest.mark.parametrize("sway", [MIN_SWAY, -0.5, 0.0, 1.0, MAX_SWAY])
def test_times_increase_for_every_sway_that_is_accepted(sway: float) -> None:
    assert (Solver(100, "euler", sway).times.diff() > 0).all() and (sway_grid(1000, sway).diff() > 0).all()


@pytest.mark.parametrize("sway", [-1.01, -2, 1.76, 5, math.inf, -math.inf, math.nan])
def test_a_sway_whose_times_would_not_increase_is_refused_with_the_range(sway: float) -> None:
    with pytest.raises(ValueError, match=rf"^decode.sway is {sway}: expected -1 to 1.7519, so that times"):
        Solver(sway=sway)
    if math.isfinite(sway):
        assert (sway_grid(10_000, sway).diff() < 0).any()


def test_the_loss_weights_valid_frames_equally_and_ignores_padding() -> None:
    velocity, dx_t = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    valid = torch.tensor([[True] * 4, [True, False, False, False]])
    assert flow_matching_loss(velocity, dx_t, valid).mean() == pytest.approx(5 / 8)
    velocity[1, 1:] = 1e6
    assert flow_matching_loss(velocity, dx_t, valid).mean() == pytest.approx(5 / 8)


def test_conditions_are_dropped_per_utterance_and_independently() -> None:
    speaker, tokens = DropConfig(0.3, 0.2).draw(20000, torch.Generator().manual_seed(0))
    assert float(tokens.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(speaker.float().mean()) == pytest.approx(0.2 + 0.8 * 0.3, abs=0.01)
    assert speaker[tokens].all()


def test_a_drop_probability_above_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drop.speaker is 1.5"):
        DropConfig(speaker=1.5)


def test_times_are_between_0_and_1_and_denser_in_the_middle() -> None:
    random = torch.Generator().manual_seed(0)
    normal, uniform = (draw_times(20000, kind, random) for kind in ("logit_normal", "uniform"))
    for t in (normal, uniform):
        assert 0 <= t.min() and t.max() <= 1 and float(t.mean()) == pytest.approx(0.5, abs=0.01)
    assert normal.std() < 0.85 * uniform.std()


def test_guidance_mixes_both_branches_in_one_call() -> None:
    blocks, calls = Blocks.from_lengths([48, 24], 24), []

    def network(x: torch.Tensor, number: int, condition: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        calls.append(len(blocks))
        assert number == 7
        return condition * x

    x, c, n = torch.randn(3, 3, 24, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(guided(network, c, n, blocks, 0.5)(x, 7), mix(c * x, n * x, 0.5))
    assert torch.allclose(guided(network, c, n, blocks, 0.0)(x, 7), c * x)
    assert calls == [6, 3]
