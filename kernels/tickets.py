"""How programs of one launch wait for each other: tickets, arrivals, and what one may read of the others.

Counters: int32 [N + 1], zeros at first: arrivals per image, then the next ticket. An image of `tiles` tiles
is complete at tiles + 1: its tiles' sums, and what the last to arrive made of them.

Why every program sees what it waits for, in whatever order programs are dispatched and run:
- A ticket is only a number (relaxed). A program waits for sums of tickets before its own: their programs have
  started, and sum without waiting.
- An arrival releases a tile's sums and acquires those of the arrivals before it, at GPU scope. One thread
  performs it: a barrier puts the stores of all threads before it, another one the loads of all after it. So
  the last of an image reads all sums. It releases what it makes of them in the same way; a poll acquires it.
- What other programs stored is loaded past L1 (.cg), where a line may be older.
- No progress of others is needed: after PATIENCE polls a program does the work of an image itself. The same
  tiles in the same order give the same bits, so it does not matter who stores them, or how often.

On counters that are no zeros at first, as where a profiler launches again, results may be wrong, but no
access is out of bounds: a ticket is never negative, and one past the last task has none.
"""

import triton
import triton.language as tl


@triton.jit
def draw_ticket(arrived_ptr, N):
    """The next of 0, 1, 2, ...: all programs with tickets before it have started."""
    return tl.atomic_add(arrived_ptr + N, 1, sem="relaxed") & 0x7FFFFFFF


@triton.jit
def arrives_last(arrived_ptr, n, tiles):
    """Counts a tile of image n, the stores of which come before; whether all others were counted before."""
    tl.debug_barrier()
    return tl.atomic_add(arrived_ptr + n, 1, sem="acq_rel") == tiles - 1


@triton.jit
def complete(arrived_ptr, n):
    """Image n is complete: everybody may read what was stored for it."""
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr + n, 1, sem="release")


@triton.jit
def wait(arrived_ptr, n, tiles, PATIENCE: tl.constexpr):
    """The count of image n, once it is complete or patience ends: tiles or less then."""
    arrived = tl.atomic_add(arrived_ptr + n, 0, sem="acquire")
    polls = 0
    while (arrived <= tiles) & (polls < PATIENCE):
        arrived = tl.atomic_add(arrived_ptr + n, 0, sem="acquire")
        polls += 1
    return arrived
