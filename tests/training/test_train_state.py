"""TrainState: one compiled graph for all folds, what happens when compilation fails, and resuming
in another precision."""

import pytest
import torch
from conftest import run_script, tiny_settings_args
from torch import nn

from core.config import load_settings
from training import network_setup, train_state
from training.train_state import TrainState

CPU = torch.device("cpu")
IMAGE_PIXELS = 16 * 24
TINY = ["channels=[4,8]", "size=[16,24]", "device=cpu", "precision=fp32", "batch_size=4"]


def make_state(*args, device=CPU, updates=9):
    torch.manual_seed(0)
    return TrainState(load_settings([*TINY, *args]), 1, updates, IMAGE_PIXELS, device)


def train_steps(state, batch_sizes=(4,)):
    for count in batch_sizes:
        images = torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8)
        targets = torch.randint(0, 256, (count, 1, 16, 24), dtype=torch.uint8)
        state.train_step(images, targets)


# ---------------------------------------------------------------- compilation


@pytest.fixture
def use_backend(monkeypatch):
    """Let networks compile with the backend that is passed; nothing prevents it."""

    def use(backend):
        compile_in_place = nn.Module.compile

        def compile_with_backend(module, **options):
            compile_in_place(module, backend=backend, **options)

        monkeypatch.setattr(nn.Module, "compile", compile_with_backend)
        monkeypatch.setattr(network_setup, "find_compile_error", lambda device: "")
        torch._dynamo.reset()

    return use


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_folds_make_one_graph(use_backend, precision):
    graphs = []

    def count_graphs(graph, inputs):
        graphs.append(graph)
        return graph.forward

    use_backend(count_graphs)
    torch._dynamo.utils.counters.clear()
    for _ in range(6):
        state = make_state("compile=true", f"precision={precision}")
        state.wrapped_model.train()
        train_steps(state, (4, 4))
    assert len(graphs) == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("args", "is_on"),
    [
        (["compile=true"], True),
        (["compile=false"], False),
        (["compile=true", "size=null", "batch_size=1"], False),  # images of several sizes
    ],
)
def test_cudnn_benchmarks_kernels_where_the_network_is_compiled(monkeypatch, args, is_on):
    monkeypatch.setattr(network_setup, "find_compile_error", lambda device: "")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not is_on)
    make_state(*args)
    assert torch.backends.cudnn.benchmark == is_on


def test_network_is_compiled_if_all_steps_have_tune_min_pixels(use_backend, monkeypatch):
    monkeypatch.setattr(network_setup, "TUNE_MIN_PIXELS", 5 * 2 * 3 * IMAGE_PIXELS)
    monkeypatch.setattr(network_setup, "wants_compile", lambda settings, device, is_long: is_long)
    use_backend("eager")
    args = ["grad_accumulation=3", "batch_size=2"]
    assert make_state(*args, updates=5).is_compiled
    assert not make_state(*args, updates=4).is_compiled


def test_update_is_clipped_to_grad_clip():
    """Nesterov's first step is the gradient times 1 plus the momentum of 0.9."""
    args = ["optimizer=sgd", "lr=1", "warmup=0", "lr_schedule=constant", "weight_decay=0"]
    norms = []
    for clip in ("1e-3", "0"):
        state = make_state(*args, f"grad_clip={clip}")
        before = [p.detach().clone() for p in state.model.parameters()]
        train_steps(state)
        pairs = zip(state.model.parameters(), before, strict=True)
        norms.append(torch.cat([(p - b).detach().flatten() for p, b in pairs]).norm().item())
    assert norms[0] == pytest.approx(1.9e-3, rel=0.01) and norms[1] > 0.01


def test_network_that_the_compiler_fails_on_trains_eagerly(use_backend):
    calls = []

    def fail(graph, inputs):
        calls.append(graph)
        raise RuntimeError("this network cannot be compiled")

    use_backend(fail)
    compiled, eager = make_state("compile=true"), make_state("compile=false")
    for state in (compiled, eager):
        torch.manual_seed(1)
        train_steps(state, (4, 4))
    assert calls
    for one, two in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_reason_for_not_compiling_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(network_setup, "find_compile_error", lambda device: "there is no compiler")
    state = make_state("compile=true")
    assert capsys.readouterr().out == (
        "compile=true: training without compiling, there is no compiler\n"
    )
    assert not state.is_compiled
    train_steps(state)


@pytest.mark.slow
def test_train_with_a_failing_c_compiler_is_eager_and_prints_why(data_dir, tmp_path, monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    args = [*tiny_settings_args(data_dir, tmp_path / "output"), "epochs=1", "compile=true"]
    completed = run_script("train.py", *args)
    assert completed.returncode == 0, completed.stderr
    assert "compile=true: training without compiling, torch.compile fails: " in completed.stdout
    assert "out-of-fold dice" in completed.stdout and "Traceback" not in completed.stderr


# ---------------------------------------------------------------- resuming in another precision


def make_state_in(precision, monkeypatch):
    """Return a state as on a GPU: fp16 has a gradient scaler."""
    monkeypatch.setattr(train_state, "pick_precision", lambda settings, device: precision)
    return make_state("compile=false")


@pytest.mark.parametrize(
    ("before", "after"), [("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "fp16"), ("fp32", "fp16")]
)
def test_load_state_dict_resumes_in_another_precision(monkeypatch, before, after):
    first = make_state_in(before, monkeypatch)
    train_steps(first)
    if before == "fp16":
        first.scaler.update(512.0)
    second = make_state_in(after, monkeypatch)
    second.load_state_dict(first.state_dict())
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert second.scaler.is_enabled() is (after == "fp16")
    if after == "fp16":
        assert second.scaler.get_scale() == (512.0 if before == "fp16" else 2.0**16)
    train_steps(second)
    assert all(p.isfinite().all() for p in second.model.parameters())


def test_every_fold_has_a_gradient_scaler_of_its_own(monkeypatch):
    first, second = (make_state_in("fp16", monkeypatch) for _ in range(2))
    train_steps(first)
    first.scaler.update(512.0)
    assert second.scaler.get_scale() == 2.0**16


def test_train_step_hands_the_loss_targets_from_0_to_1_for_one_class():
    state, seen = make_state(), []

    def loss(logits, targets):
        seen.append(targets)
        return logits.mean()

    state.loss = loss
    targets = torch.arange(256, dtype=torch.uint8).repeat(6)[: 4 * 16 * 24].view(4, 1, 16, 24)
    state.train_step(torch.zeros(4, 3, 16, 24, dtype=torch.uint8), targets)
    assert torch.equal(seen[0], targets.float() / 255) and seen[0].max() == 1


def test_train_state_takes_the_ema_decay_of_the_settings():
    assert make_state("ema_decay=0.9").ema.decay == 0.9


def test_gradients_are_clipped_without_the_scale_of_fp16(monkeypatch):
    norms = []
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(train_state, "pick_precision", lambda *args, p=precision: p)
        state = make_state("optimizer=sgd", "lr=1", "warmup=0", "weight_decay=0", "grad_clip=10")
        state.precision = "fp32"  # of the forward pass
        assert state.scaler.is_enabled() is (precision == "fp16")
        before = [p.detach().clone() for p in state.model.parameters()]
        torch.manual_seed(1)
        train_steps(state)
        pairs = zip(state.model.parameters(), before, strict=True)
        norms.append(torch.cat([(p - b).detach().flatten() for p, b in pairs]).norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and norms[0] < 0.99 * 19
