"""model_summary.py prints the network of the settings."""

import pytest
from conftest import assert_input_error

import model_summary


def test_model_summary_prints_layers_shapes_and_parameters(capsys):
    model_summary.main(["recipe=pets_slim"])
    printed = capsys.readouterr().out
    assert "Total params: 6,667,639" in printed
    assert "encoder_blocks" in printed and "[1, 8, 256, 256]" in printed


def test_model_summary_of_an_architecture_that_pools_to_one_pixel(capsys):
    model_summary.main(["model=smp", "arch=DeepLabV3Plus", "encoder=resnet18", "size=[64,64]"])
    assert "forward pass of one image: " in capsys.readouterr().out


def test_model_summary_counts_the_operations_of_a_forward_pass(capsys):
    model_summary.main(["channels=[8,16]", "size=[100,200]"])
    top = 9 * (3 * 8 + 8 * 8) + 9 * (16 * 8 + 8 * 8) + 8  # encoder, decoder, head
    bottom = 9 * (8 * 16 + 16 * 16) + 4 * 16 * 8  # a quarter of the pixels; 2×2 upsampling
    tflop = 2 * 100 * 200 * (top + bottom / 4) / 1e12
    assert f"forward pass of one image: {tflop:.3g} TFLOP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "size"),
    [
        (["model=smp", "encoder=resnet18", "size=[100,200]"], "128, 224"),
        (["recipe=carvana_small", "size=null", "channels=[4,8]"], "1280, 1920"),  # native
    ],
)
def test_model_summary_has_the_size_after_padding(capsys, args, size):
    model_summary.main(args)
    assert f"[1, 1, {size}]" in capsys.readouterr().out


def test_model_summary_of_a_run_has_its_network(trained_run, capsys):
    model_summary.main([f"output_dir={trained_run.output_dir}", "run=tiny"])
    printed = capsys.readouterr().out
    assert "[1, 8, 32, 48]" in printed and "Total params: 31," not in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs=tiny,other"], "runs: this shows a single network; set run="),
        (["run=tinny"], "tinny: no such run (did you mean tiny?)"),
    ],
)
def test_model_summary_rejects_several_runs_and_one_that_does_not_exist(trained_run, args, message):
    assert_input_error(model_summary.main, [f"output_dir={trained_run.output_dir}", *args], message)
