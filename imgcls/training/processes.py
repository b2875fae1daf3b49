"""The processes that train one model together: who is who, and what they tell each other.

Gradients are averaged by hand, in buckets, once for each update, rather than by DistributedDataParallel: parts of a
batch that differ in size (or in the weight of their classes) then count exactly as in one process, any number of
backward passes may come before an update, and the model stays the object it is, with its names, stages and thaws. What
it gives up is the overlap of communication with the backward pass.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from imgcls.data.loading import num_cores
from imgcls.errors import UserError

T = TypeVar("T")

JOIN_SECONDS = 120.0
"""For so long the processes wait for each other at the start."""
SILENCE = timedelta(minutes=30)
"""So long a process may take between two exchanges; one that has died is noticed at once on a CPU."""
BUCKET_BYTES = 25 * 2**20
POLL_SECONDS = 0.1
HEARING_SECONDS = 10.0
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and schedulers set."""


class OthersGone(UserError):
    """What the other processes should have sent did not come; the reason is theirs to tell."""


class Group:
    """The processes of a training, as one of them sees them. Alone, nothing is sent anywhere.

    Args:
        rank: this process's number, from 0.
        size: how many there are.
        store: the table of texts that all share.
        control: torch's group for small exchanges on the CPU.

    Attributes:
        rank: this process's number; 0 is the one that tracks, prints and writes.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, store: Any = None, control: Any = None) -> None:
        self.rank, self.size = rank, size
        self._store, self._control = store, control

    @property
    def is_first(self) -> bool:
        """Whether this is the process that tracks, prints and writes."""
        return self.rank == 0

    def average_gradients(
        self, parameters: Iterable[nn.Parameter], loss: torch.Tensor, share: torch.Tensor, hits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the gradient of the whole batch's loss into every process; returns that loss, and all hits.

        Args:
            parameters: those with a gradient must be the same in all processes.
            loss: () of this process's part.
            share: () what the part's loss counts in that of the whole; the gradients are of `loss * share`.
            hits: () images of the part that the network is right about.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        figures = torch.stack([share.float(), loss.detach().float() * share.float(), hits.float()])
        with _others():
            sent = [(dist.all_reduce(figures, async_op=True), figures, list[torch.Tensor]())]
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                sent.append((dist.all_reduce(flat, async_op=True), flat, bucket))
            for work, flat, bucket in sent:
                work.wait()
                parts = torch.split(flat, [gradient.numel() for gradient in bucket]) if bucket else ()
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_((part / figures[0].to(part.dtype)).view_as(gradient))
        return figures[1] / figures[0], figures[2]

    @torch.no_grad()
    def broadcast_model(self, model: nn.Module, *, buffers_only: bool = False) -> None:
        """Give all processes the first one's parameters and buffers."""
        if self.size == 1:
            return
        parameters = [] if buffers_only else [p.detach() for p in model.parameters()]
        with _others():
            for tensor in (*parameters, *model.buffers()):
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                if whole is not tensor:
                    tensor.copy_(whole)

    def gather(self, value: T) -> list[T]:
        """What each process gave, by rank, in all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _others():
            dist.all_gather_object(found, value, group=self._control)
        return found

    def from_first(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        carried = [value]
        with _others():
            dist.broadcast_object_list(carried, src=0, group=self._control)
        return carried[0]

    def announce(self, key: str, text: str = "ok") -> None:
        """Tell those that wait for the key."""
        if self.size > 1:
            with _others():
                self._store.set(key, text)

    def wait_for(self, key: str) -> str:
        """What was announced under the key, however long it takes; the process can be stopped meanwhile."""
        with _others():
            while not self._store.check([key]):
                time.sleep(POLL_SECONDS)
            return str(self._store.get(key), "utf-8")

    def agree(self, work: Callable[[], T]) -> T:
        """The result of `work`, where it fails in no process.

        Raises:
            UserError: it failed here, with the same message where several failed.
            SystemExit: 2, where it failed in another process, which tells why.
        """
        if self.size == 1:
            return work()
        try:
            result, failure = work(), None
        except UserError as error:
            failure = error
        first = next((rank for rank, failed in enumerate(self.gather(failure is not None)) if failed), None)
        if first is None:
            return result
        if failure is not None and first == self.rank:
            raise failure
        raise SystemExit(2)

    def start_vote(self, tensor: torch.Tensor) -> Any:
        """Begin to replace the tensor by the maximum over the processes; `wait()` on what is returned ends that."""
        with _others():
            return dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control, async_op=True)

    def end_vote(self, work: Any) -> None:
        """Wait for what `start_vote` began."""
        with _others():
            work.wait()


ALONE = Group()
"""One process."""


class Ballot:
    """Whether any process was asked to stop, answered alike in all of them.

    Every process must ask equally often. An answer comes one question late, so that nobody waits for it: the vote goes
    round while a batch is computed.

    Args:
        group: the processes.
        asked: the number of the signal that asked this one to stop, or 0.

    Attributes:
        signum: the number that was decided on, or 0.
    """

    def __init__(self, group: Group, asked: Callable[[], int]) -> None:
        self._group, self._asked = group, asked
        self._vote: tuple[Any, torch.Tensor] | None = None
        self.signum = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.signum:
            return True
        if self._group.size == 1:
            self.signum = self._asked()
            return self.signum > 0
        if self._vote is not None:
            work, box = self._vote
            self._group.end_vote(work)
            self.signum = int(box.item())
            self._vote = None
            if self.signum:
                return True
        box = torch.tensor([self._asked()])
        self._vote = self._group.start_vote(box), box
        return False


def resolve_processes(asked: int | Literal["auto"], *, device: Literal["auto", "cpu", "cuda"]) -> int:
    """How many processes train: as asked; `auto` is one for each GPU, and one on a CPU.

    Raises:
        UserError: more than there are GPUs, where GPUs are used.
    """
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if asked == "auto":
        return max(1, gpus)
    if gpus and asked > gpus:
        raise UserError(
            f"train.processes is {asked}, but there {'is 1 GPU' if gpus == 1 else f'are {gpus} GPUs'}; each process "
            f"needs one of its own. Set train.processes to auto or at most {gpus}, or train.device to cpu."
        )
    return asked


def check_shares(
    processes: int, *, batch_size: int, sync_batch_norm: bool, on_gpu: bool, micro_batch: int | None = None
) -> None:
    """Raise a `UserError` where a batch cannot be shared out, or batch normalisation cannot be shared."""
    if batch_size % processes or batch_size // processes < 2:
        below = max(2, batch_size // processes) * processes
        raise UserError(
            f"train.batch_size is {batch_size}, which {processes} processes share; expected a multiple of {processes} "
            f"with two images at least for each, such as {below}. Change it, or train.processes."
        )
    if sync_batch_norm and processes > 1 and not on_gpu:
        raise UserError(
            "train.sync_batch_norm is true, which torch has for GPUs only, and this training is on the CPU. Set it to "
            "false: each process then normalises its own part of a batch, and the first one's statistics are kept."
        )
    if sync_batch_norm and processes > 1 and micro_batch is not None and micro_batch < batch_size // processes:
        raise UserError(
            f"train.micro_batch is {micro_batch}, less than the {batch_size // processes} images that each of "
            f"{processes} processes has of a batch, and train.sync_batch_norm is true: processes that make different "
            "numbers of parts would wait for each other for ever. Set train.micro_batch to auto with a smaller "
            "train.batch_size, or train.sync_batch_norm to false."
        )


def is_joined(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or a scheduler started this process as one of several, or of one."""
    return "RANK" in environ and "WORLD_SIZE" in environ


@contextlib.contextmanager
def join(*, on_gpu: bool, timeout: float = JOIN_SECONDS, environ: Mapping[str, str] = os.environ) -> Iterator[Group]:
    """Meet the other processes that torchrun or a scheduler started; this one then uses its share of the machine.

    Args:
        on_gpu: talk over NCCL and make the local rank's GPU the current one; else over gloo.
        timeout: seconds to wait for the others.
        environ: where RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are.

    Raises:
        UserError: one of these is missing or out of range, there is no such GPU, or the others do not come.
    """
    rank, size, local_rank = _places(environ)
    local_size = min(size, int(environ.get("LOCAL_WORLD_SIZE", size)))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK is {local_rank}, but this machine has {torch.cuda.device_count()} GPUs; each process "
                "needs one of its own. Start fewer processes, or set train.device to cpu."
            )
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in environ:
        torch.set_num_threads(max(1, num_cores() // local_size))
    if size == 1:
        yield ALONE
        return
    store = _meet(rank, size, timeout, environ)
    with _others():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=PrefixStore("imgcls", store),
            rank=rank,
            world_size=size,
            timeout=SILENCE,
            device_id=torch.device("cuda", local_rank) if on_gpu else None,
        )
        control = dist.new_group(backend="gloo", timeout=SILENCE) if on_gpu else dist.group.WORLD
    yield Group(rank, size, store=store, control=control)
    # Not after an error: the process ends then, and NCCL would wait for those that are gone.
    dist.destroy_process_group()


def from_first(work: Callable[[], T], *, timeout: float = JOIN_SECONDS, environ: Mapping[str, str] = os.environ) -> T:
    """What `work` gives in the first of the processes that were started, in all of them, before they `join`.

    Raises:
        UserError: in the first: what `work` raises. Or the others do not come.
        SystemExit: 2, in the others, where it failed.
    """
    rank, size, _ = _places(environ)
    if size == 1:
        return work()
    store = _meet(rank, size, timeout, environ)
    if rank:
        # In no exchange of torch's, so that this process can be stopped meanwhile.
        said = Group(rank, size, store=store).wait_for("first")
        with contextlib.suppress(RuntimeError):
            store.set(f"heard/{rank}", "")
        if said != "ok":
            raise SystemExit(2)
    else:
        try:
            found = work()
        except BaseException:
            store.set("first", "failed")
            _see_heard(store, size)
            raise
        store.set("first", "ok")
    with _others():
        dist.init_process_group(
            "gloo", store=PrefixStore("imgcls-first", store), rank=rank, world_size=size, timeout=SILENCE
        )
    shared = Group(rank, size, store=store, control=dist.group.WORLD).from_first(found if not rank else None)
    dist.destroy_process_group()
    assert shared is not None
    return shared


def _see_heard(store: Any, size: int) -> None:
    """Wait a little until the others have heard that it failed: the store may end with this process."""
    deadline = time.monotonic() + HEARING_SECONDS
    with contextlib.suppress(RuntimeError):
        while time.monotonic() < deadline and not store.check([f"heard/{rank}" for rank in range(1, size)]):
            time.sleep(POLL_SECONDS)


def _places(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, size, local rank)."""
    size_alone = environ.get("WORLD_SIZE") == "1"
    missing = [name for name in NAMES if name not in environ and not (size_alone and name.startswith("MASTER"))]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, as torchrun and schedulers do, but not {' and '.join(missing)}. Set all of "
            f"{', '.join(NAMES)}, or unset them and give train.processes."
        )
    found = {name: environ[name] for name in NAMES[:3]}
    if not all(text.isdecimal() for text in found.values()) or not (
        int(found["RANK"]) < int(found["WORLD_SIZE"]) and int(found["LOCAL_RANK"]) <= int(found["RANK"])
    ):
        told = ", ".join(f"{name}={text!r}" for name, text in found.items())
        raise UserError(
            f"found {told} in the environment; expected whole numbers, 0 <= LOCAL_RANK <= RANK < WORLD_SIZE."
        )
    return int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"])


def _meet(rank: int, size: int, timeout: float, environ: Mapping[str, str]) -> Any:
    """The store, once all processes have been seen there."""
    where = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    if (where, rank, size) in _MET:
        return _MET[where, rank, size]
    deadline = time.monotonic() + timeout
    try:
        store = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout)))[0]
        store.set(f"here/{rank}", "")
        missing = set(range(size))
        while missing and time.monotonic() < deadline:
            missing = {other for other in missing if not store.check([f"here/{other}"])}
            time.sleep(POLL_SECONDS if missing else 0)
    except (RuntimeError, ValueError, OSError) as error:
        found = str(error).split("\n")[0]
        raise UserError(
            f"process {rank} of {size} did not meet the others at {where} within {timeout:g} s: {found}. All have to "
            "be started within that time with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE."
        ) from error
    if missing:
        raise UserError(
            f"process {rank} of {size} waited {timeout:g} s at {where}, and {_numbers(missing)} did not come. All have "
            "to be started within that time with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE."
        )
    _MET[where, rank, size] = store
    return store


_MET: dict[tuple[str, int, int], Any] = {}
"""The stores of this process by where they are: it meets the others once."""


def _numbers(ranks: Iterable[int]) -> str:
    return "process " + ", ".join(str(rank) for rank in sorted(ranks))


def _buckets(gradients: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The gradients in order, some MiB of one type together."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        full = sum(other.nbytes for other in bucket) + gradient.nbytes > BUCKET_BYTES
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """torch says in many ways that another process is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise OthersGone(
            f"another process of this training has ended, or was silent for {SILENCE.seconds // 60} minutes: "
            f"{str(error).splitlines()[0]}. What that process said tells why."
        ) from error
