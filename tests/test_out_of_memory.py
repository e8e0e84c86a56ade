"""An allocator that gives up is told from other errors, and the user is told what would need less."""

import pytest
import torch
from pack.trainers.config import SelectiveConfig
from pack.trainers.out_of_memory import explanation, is_out_of_memory
from test_budget import Sizes


def raised(action) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError, ValueError)) as caught:
        action()
    return caught.value


def no_room() -> BaseException:
    """What torch's allocator for the CPU raises."""
    return raised(lambda: torch.empty(2**55))


def test_allocators_errors_are_known_and_others_are_not():
    assert is_out_of_memory(no_room())
    assert is_out_of_memory(raised(lambda: bytearray(2**62)))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(raised(lambda: torch.ones(2) @ torch.ones(3)))
    assert not is_out_of_memory(raised(lambda: int("x")))


def test_the_message_says_what_was_planned_what_was_free_and_what_needs_less():
    config, planner = SelectiveConfig(), Sizes(free_gb=3.4)
    told = explanation(no_room(), config, planner(config), planner)
    assert isinstance(told, torch.OutOfMemoryError)  # for which ComfyUI unloads its models
    assert str(told).endswith(str(no_room()))  # where the saved run is named, too
    for words in ("3.50 GB were planned", "3.40 GB were free", "Try: gradient_checkpointing = True would need 3.20 GB"):
        assert words in str(told)


def test_where_nothing_may_change_the_message_says_what_helps():
    settled = SelectiveConfig(gradient_checkpointing=True, quantization="int8", low_res_ratio=0.3)
    told = explanation(no_room(), settled, Sizes()(settled), Sizes())
    assert "A smaller rank, batch_size or resolution needs less" in str(told) and "free" not in str(told)


def test_a_network_that_cannot_take_smaller_images_hides_nothing(caplog):
    """Planning for what would need less runs the network at sizes it was not asked to train at."""

    def planner(config):
        if config.low_res_ratio < SelectiveConfig.low_res_ratio:
            raise ValueError("Expected more than 1 value per channel")
        return Sizes()(config)

    told = explanation(no_room(), SelectiveConfig(), Sizes()(SelectiveConfig()), planner)
    assert isinstance(told, torch.OutOfMemoryError) and str(told).endswith(str(no_room()))
    assert "more than 1 value per channel" in caplog.text
