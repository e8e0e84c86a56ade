"""A run that ends, however it ends, goes on to the same bits as one that never stopped, or says what has changed."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from every_trainer import ON_U_NETS, SELECTIVE, STEPS, TOKEN, TOYS, Trainer
from pack.trainers import objective
from pack.trainers.config import HollowConfig, TokenConfig
from pack.trainers.resume import Saves, differences
from pack.trainers.saving import all_points, read_point
from safetensors.torch import load_file, save_file
from test_selective import Cancelled
from torch.utils._python_dispatch import TorchDispatchMode

every_trainer = pytest.mark.parametrize("trainer", [*TOYS, *ON_U_NETS], ids=lambda one: one.name)


def assert_same(got: tuple, wanted: tuple) -> None:
    """What is learnt, to the bit, and every step's kind, timestep and loss."""
    assert got[0].keys() == wanted[0].keys()
    assert all(torch.equal(got[0][key], wanted[0][key]) for key in wanted[0])
    assert [(s.step, s.kind, s.t, s.loss) for s in got[1]] == [(s.step, s.kind, s.t, s.loss) for s in wanted[1]]


def run(trainer: Trainer, folder: Path, resumed=None, every: int = 0, **options):
    saves = Saves(folder / "runs" / "one", every, resumed, should_stop=options.pop("should_stop", lambda: False))
    saves.check("settings", replace(trainer.config, steps=options.get("steps", STEPS)).facts())
    return trainer.run(folder, saves, **options), saves


def ending(step: int, error: BaseException):
    """An on_step that raises after this step."""

    def on_step(report):
        if report.step == step:
            raise error

    return on_step


class Failing(TorchDispatchMode):
    """The n-th operation on tensors from step `after` on runs out of memory."""

    def __init__(self, n: int, error: BaseException):
        super().__init__()
        self.n, self.error, self.calls, self.is_armed = n, error, 0, False

    def arm(self, report) -> None:
        self.is_armed = report.step == 2

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += self.is_armed
        if self.is_armed and self.calls == self.n:
            self.is_armed = False
            raise self.error
        return function(*args, **(kwargs or {}))


@every_trainer
def test_a_run_cancelled_after_a_step_goes_on_to_the_same_bits(trainer, tmp_path):
    """Also where every step is saved, and where it is cancelled twice."""
    whole = trainer.run(tmp_path)
    with pytest.raises(Cancelled):
        run(trainer, tmp_path, on_step=ending(2, Cancelled()))
    (point,) = all_points(tmp_path / "runs")
    assert point.step == 2
    with pytest.raises(Cancelled):
        run(trainer, tmp_path, point, every=1, on_step=ending(5, Cancelled()))
    assert [point.step for point in all_points(tmp_path / "runs")] == [5, 4]
    assert_same(run(trainer, tmp_path, all_points(tmp_path / "runs")[1])[0], whole)


@pytest.mark.slow
@every_trainer
def test_memory_that_runs_out_within_a_step_costs_that_step_alone(trainer, tmp_path):
    """At operations spread over the step, or drawn at random: forward and backward passes, both sides of a ZO probe."""
    whole, counting = trainer.run(tmp_path), Failing(-1, ValueError())
    with counting:
        trainer.run(tmp_path, on_step=counting.arm)
    chance = random.Random(trainer.name)
    for n in range(1, counting.calls, 7) if trainer.is_toy else chance.sample(range(1, counting.calls), 2):
        failing = Failing(n, torch.OutOfMemoryError("Allocation failed"))
        with failing, pytest.raises(torch.OutOfMemoryError, match="(?s)^Allocation failed") as told:
            run(trainer, tmp_path / str(n), on_step=failing.arm)
        found = all_points(tmp_path / str(n) / "runs")
        if not found:  # the optimizer was at it; every=0 saved nothing before
            assert "had begun to change the state. Nothing was saved before" in str(told.value)
            continue
        assert [point.step for point in found] == [2]
        assert "step 2 of 6" in str(told.value) and "set resume to one/step_000002" in str(told.value)
        assert_same(run(trainer, tmp_path / str(n), found[0])[0], whole)


@pytest.mark.parametrize("trainer", [TOYS[2], TOYS[-1]], ids=lambda one: one.name)
def test_a_step_that_failed_while_it_changed_the_state_is_not_saved(trainer, tmp_path, monkeypatch):
    """Then the point before it remains, and the message says so."""
    stock, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def half_a_step(self, *args, **kwargs):
        result = stock(self, *args, **kwargs)
        if next(calls) == 3:
            raise torch.OutOfMemoryError("Allocation failed")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", half_a_step)
    monkeypatch.setattr(torch.optim.AdamW, "hooked", False, raising=False)  # of an Optimizer class: wrap it again
    with pytest.raises(torch.OutOfMemoryError, match="had begun to change the state. What was learnt by step 2 of 6"):
        run(trainer, tmp_path, every=1)
    assert [point.step for point in all_points(tmp_path / "runs")] == [2, 1]


not_finite = [(one, seed) for one in TOYS for seed in range(2)] + [(ON_U_NETS[1], 0)]


@pytest.mark.parametrize("trainer, seed", not_finite, ids=lambda value: getattr(value, "name", value))
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(trainer, seed, tmp_path, monkeypatch):
    chance = random.Random(f"{trainer.name} {seed}")
    last, value = chance.randrange(1, STEPS), chance.choice(("nan", "inf"))
    seen, stock = [], objective.denoising_loss

    def broken(*args, **options):
        return stock(*args, **options) * (float(value) if len(seen) == last else 1)

    for module in ("selective", "hollow", "token_steps"):
        monkeypatch.setattr(f"pack.trainers.{module}.denoising_loss", broken)
    where = f"(became {value} at step {last + 1} |under fixed noise became {value} after step {last};)"
    message = f"(?s)the loss {where}.*step {last} of 6.*set resume to one/step_00000{last}"
    with pytest.raises(RuntimeError, match=message):
        run(trainer, tmp_path, on_step=seen.append)
    monkeypatch.undo()
    (point,) = all_points(tmp_path / "runs")
    assert_same(run(trainer, tmp_path, point)[0], trainer.run(tmp_path))


@every_trainer
def test_stop_and_keep_ends_after_the_step_and_gives_the_result_so_far(trainer, tmp_path):
    stopped = []
    got, saves = run(trainer, tmp_path, on_step=stopped.append, should_stop=lambda: len(stopped) == 3)
    assert saves.is_stopped and len(got[1]) == saves.last.step == 3
    if not isinstance(trainer.config, TokenConfig):  # whose result is evaluated once more
        assert all(torch.equal(got[0][key], value) for key, value in load_file(saves.last.product).items())
    assert_same(run(trainer, tmp_path, saves.last)[0], trainer.run(tmp_path))


def test_a_token_that_is_stopped_between_evaluations_is_evaluated(tmp_path):
    trainer, stopped = Trainer("token", replace(TOKEN, eval_every=5)), []
    got, _ = run(trainer, tmp_path, on_step=stopped.append, should_stop=lambda: len(stopped) == 3)
    as_long = Trainer("token", replace(TOKEN, eval_every=5, steps=3)).run(tmp_path)
    assert_same(got, as_long)


@pytest.mark.parametrize("trainer", [TOYS[1], TOYS[7], ON_U_NETS[1]], ids=lambda one: one.name)
def test_a_finished_run_goes_on_to_more_steps(trainer, tmp_path):
    _, saves = run(trainer, tmp_path, steps=5)
    assert saves.last.step == 5 and "step 5 of 5" in saves.story
    assert_same(run(trainer, tmp_path, saves.last)[0], trainer.run(tmp_path))
    _, again = run(trainer, tmp_path, saves.last, steps=5)
    assert again.last.step == 5
    with pytest.raises(ValueError, match="steps: got 4, needs to be at least 5, which the run is at"):
        run(trainer, tmp_path, saves.last, steps=4)


def test_more_steps_are_refused_where_the_choice_of_steps_depends_on_them():
    for strategy in ("dtap", "reversed", "tap"):
        facts = [replace(SELECTIVE, strategy=strategy, steps=steps).facts() for steps in (5, 6)]
        lines = [f"steps, over which {strategy} spreads: was 5, is 6"] if strategy != "tap" else []
        assert differences(*facts) == lines
    stored = [HollowConfig(steps=steps, cache_samples=8).facts() for steps in (4, 5, 8, 9)]
    name = "stored samples (cache_samples, or steps times batch_size if fewer)"
    assert differences(stored[0], stored[1]) == [f"{name}: was 4, is 5"]
    assert not differences(stored[2], stored[3])


def test_whatever_has_changed_is_named(tmp_path):
    trainer = Trainer("selective", replace(SELECTIVE, strategy="random"))
    _, saves = run(trainer, tmp_path, steps=1)
    other = Trainer("selective", replace(trainer.config, learning_rate=0.5, seed=3))
    with pytest.raises(ValueError) as refused:
        run(other, tmp_path, saves.last)
    text = str(refused.value)
    assert "one/step_000001 was made under other conditions" in text
    assert "learning_rate: was 0.001, is 0.5" in text and "seed: was 0, is 3" in text
    assert text.count("was ") == 3 and "set resume to off" in text
    with pytest.raises(ValueError, match="weights of the model: was '[0-9a-f]{16}', is '[0-9a-f]{16}'"):
        on_u_net = ON_U_NETS[0]
        _, saves = run(on_u_net, tmp_path, steps=1)
        run(on_u_net, tmp_path, saves.last, model=tiny.tiny_model("mini", seed=5))


def test_what_is_kept_is_bounded_and_never_without_a_whole_point(tmp_path):
    trainer = Trainer("selective", replace(SELECTIVE, strategy="zo_high", zo_perturbations=1))
    for number in range(12):
        saves = Saves(tmp_path / "runs" / f"run_{number:02}", 1)
        trainer.run(tmp_path, saves, steps=3 if number == 11 else 1)
        (saves.folder / "note.txt").write_text("mine") if number == 0 else None
    kept = all_points(tmp_path / "runs")
    assert [point.name for point in kept[:3]] == ["run_11/step_000003", "run_11/step_000002", "run_10/step_000001"]
    assert len({point.folder for point in kept}) == 10
    assert sorted(path.name for path in (tmp_path / "runs").iterdir())[:2] == ["run_00", "run_02"]
    assert [path.name for path in (tmp_path / "runs" / "run_00").iterdir()] == ["note.txt"]
    assert {path.name for path in kept[0].folder.iterdir()} == {
        f"step_00000{step}{end}" for step in (2, 3) for end in (".safetensors", ".state.safetensors")
    }


def test_a_folder_that_cannot_be_written_ends_no_training_and_is_told(tmp_path):
    trainer = TOYS[5]
    (tmp_path / "runs").write_text("a file where the folder should be")
    got, saves = run(trainer, tmp_path, every=2)
    assert_same(got, trainer.run(tmp_path))
    assert "could not be saved" in saves.story and saves.last is None


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_a_damaged_point_is_named(tmp_path, damage):
    _, saves = run(TOYS[5], tmp_path, steps=1)
    path = saves.last.state
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"resume: .*step_000001.state.safetensors cannot be read .*choose another"):
        read_point(saves.last)


def test_a_saved_run_can_be_read_without_this_code(tmp_path):
    """Safetensors with JSON in it, and the LoRA as any program loads it."""
    got, saves = run(TOYS[5], tmp_path)
    product = load_file(saves.last.product)
    assert all(torch.equal(product[key], value) for key, value in got[0].items())
    assert load_file(saves.last.state)["log"].shape == (STEPS, 5)
