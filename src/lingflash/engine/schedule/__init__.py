"""What runs next, and what came of it: plain Python without torch, I/O or a clock of its own.

It holds the sequences and asks the cache for their memory. It never touches a tensor: what is to be
done to the memory goes along with the step, as `SchedulerOutput.memory_ops`.
"""
