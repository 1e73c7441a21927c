"""How many processes were started, and whether that is how many were meant.

Here: building the process group through accelerate, once, and refusing a launch that silently became something else.
Elsewhere: whether all come and live (meeting.py), what the processes do together (ranks.py). Source of the traps:
accelerate 1.15, where
``accelerate launch --cpu --num_processes 2`` starts one process.
"""

import os
from datetime import timedelta

import torch

from safesynthdp.errors import ConfigError
from safesynthdp.training.meeting import Patience, meet
from safesynthdp.training.ranks import Ranks

LAUNCH = "accelerate launch --config_file accelerate_configs/cpu_2proc.yaml (multi_gpu.yaml on GPUs) --num_processes N"


def start_ranks(*, num_processes: int | None = None, patience: Patience | None = None) -> Ranks:
    """Join the processes of this launch, or return the only one.

    Args:
        num_processes: ``hardware.num_processes``: how many were meant; None = as many as the launcher says.
        patience: How long to wait for the others before this process ends.

    Raises:
        ConfigError: If more or fewer processes were started than were meant.
        SafeSynthError: If some did not come, or were lost before all had met.
    """
    patience = patience or Patience()
    _refuse_silent_single(os.environ)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes is not None and num_processes != wanted:
        raise ConfigError(
            f"hardware.num_processes={num_processes}, but {wanted} started; launch with {LAUNCH}, or correct the number"
        )
    use_cpu = _is_set("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if use_cpu and os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        _stay_on_this_machine()
    watch = meet(os.environ, patience) if wanted > 1 else None
    from accelerate import Accelerator, InitProcessGroupKwargs

    waiting = timedelta(seconds=patience.waiting)
    accelerator = Accelerator(cpu=use_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=waiting)])
    found = accelerator.num_processes
    if found != wanted:
        raise ConfigError(f"num_processes={found}, but the launcher started {wanted}; launch with {LAUNCH}")
    device = torch.device(accelerator.device)
    if found == 1:
        return Ranks(device=device)
    if device.type == "cpu" and wanted > 1 and not use_cpu:
        raise ConfigError(f"num_processes={wanted}: accelerate gave the CPU where there is a GPU; set use_cpu: true")
    control = None if device.type == "cpu" else torch.distributed.new_group(backend="gloo", timeout=waiting)
    return Ranks(rank=accelerator.process_index, world_size=found, device=device, control=control, watch=watch)


def end_ranks(ranks: Ranks) -> None:
    """Leave the process group; only when all went well, since a broken one would wait."""
    if ranks.watch is not None:
        ranks.watch.stop()
        ranks.total([0.0])  # rank 0 holds the meeting point: it leaves when nobody listens there any more
    if ranks.are_several and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _refuse_silent_single(environment: "os._Environ[str] | dict[str, str]") -> None:
    """Refuse one process where several were asked for.

    accelerate's launcher for one process sets MASTER_ADDR when it was asked for several; srun starts several that know
    nothing of one another.
    """
    if "WORLD_SIZE" in environment:
        return
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise ConfigError(
            "num_processes: several were asked for and one was started (accelerate does this without --multi_gpu, also "
            f"with --cpu); launch with {LAUNCH}"
        )
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise ConfigError(
            f"num_processes: srun started {tasks} tasks that do not know of one another; start one task a node with "
            "accelerate launch in it (docs/howto/slurm.md)"
        )


def _stay_on_this_machine() -> None:
    """Let gloo talk over the loopback: a host name that does not resolve must not stop a local run."""
    if os.path.exists("/sys/class/net/lo"):  # noqa: PTH110 (no path of ours)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on")
