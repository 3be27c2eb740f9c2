"""The engine: token ids in, events with token ids out; it knows no text and no wire.

loop.py is one step. Its desks, each of which may import those below it:

    process/    the engine's process and those of other ranks; the only desk that knows the loop
    run/        a step on the device
    memory/     how much memory there is, and the tensors of it
    schedule/   what runs next, and what came of it; without torch
"""
