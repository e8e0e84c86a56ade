"""Everything of ComfyUI's that a run of ours could leave changed, in a form to compare: before == after.

Inference tensors may have become normal ones of the same bits (nodes/host_weights.py); nothing else may change.
"""

import random
import threading
from collections.abc import Callable

import numpy as np
import torch
from comfy import model_management
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PATCHER = ("patches", "object_patches", "hook_patches", "injections", "attachments", "additional_models", "callbacks",
           "wrappers", "model_options", "weight_wrapper_patches", "parent")  # fmt: skip


def host_state(model, clip, vae) -> dict[str, object]:
    """By name, what can be compared. All models are unloaded first: being loaded is no change."""
    model_management.unload_all_models()
    state = _globals()
    networks = {"model": model.model, "clip": clip.cond_stage_model, "vae": vae.first_stage_model}
    for name, network in networks.items():
        state |= {f"{name}: {key}": value for key, value in _network(network).items()}
    for name, patcher in {"model": model, "clip": clip.patcher, "vae": vae.patcher}.items():
        for attribute in PATCHER:
            if hasattr(patcher, attribute):
                state[f"{name} patcher: {attribute}"] = _plain(getattr(patcher, attribute))
    return state | {"clip: layer": clip.layer_idx, "clip: tokenizer": _plain(vars(clip.tokenizer))}


def assert_untouched(before: dict[str, object], now: dict[str, object]) -> None:
    """Raises AssertionError naming what differs."""
    changed = sorted(name for name in before.keys() | now.keys() if not _same(before.get(name), now.get(name)))
    told = [f"{name}: {before.get(name)!r:.200} -> {now.get(name)!r:.200}" for name in changed[:4]]
    assert not changed, f"{len(changed)} changed\n" + "\n".join(told)


def _globals() -> dict[str, object]:
    switches: dict[str, Callable[[], object]] = {
        "inference mode": torch.is_inference_mode_enabled,
        "gradients": torch.is_grad_enabled,
        "default dtype": torch.get_default_dtype,
        "default device": torch.get_default_device,
        "threads of torch": torch.get_num_threads,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "autocast": torch.is_autocast_enabled,
        "matmul precision": torch.get_float32_matmul_precision,
        "anomaly detection": torch.is_anomaly_enabled,
        "dispatch modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack,
    }
    backends = torch.backends
    flags = [backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.mkldnn.enabled]
    return {name: read() for name, read in switches.items()} | {
        "backends": flags,
        "generator of torch": torch.get_rng_state(),
        "generator of numpy": repr(np.random.get_state()),
        "generator of Python": random.getstate(),
        "ComfyUI is training": getattr(model_management, "in_training", None),
        "interrupt": model_management.interrupt_processing,
        "threads": sorted(t.name for t in threading.enumerate() if t.name != "tqdm_monitor"),  # ComfyUI's bars
    }


def _network(network: nn.Module) -> dict[str, object]:
    state: dict[str, object] = {}
    for name, module in network.named_modules():
        attributes = {key for key in vars(module) if not key.startswith("_")}
        hooks = {hook: len(getattr(module, hook)) for hook in HOOKS}
        state[name or "itself"] = (id(module), type(module), module.training, attributes, hooks)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        state[f"{name} (bits)"] = tensor.detach().clone()
        state[f"{name} (kind)"] = (type(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor.grad)
    return state


def _plain(value: object) -> object:
    """The structure of containers; whatever else is in them by identity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)


def _same(before: object, now: object) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return before.dtype == now.dtype and before.shape == now.shape and torch.equal(before, now)
    return type(before) is type(now) and before == now
