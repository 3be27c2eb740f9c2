"""How much memory there is, and the tensors of it.

Who holds what, from the sequence to the tensor. Left: numbers of blocks and slots, decided without
torch. Right: the bytes they stand for.

    Scheduler                                            planning.py counts, once:
      PrefixKeeper  what to take and to leave              MemoryPlan  bytes and sizes of a rank
        |                                                    |
    CacheManager    a Lease for each that runs           allocate_cache (tensors.py)
      |    |                                                 |
      |  KeptPrefixes  what no lease reads               CacheTensors  latents, states, tails
      |    |    |                                            |
      |    |  Checkpoints  states kept in blocks or      CacheMemory  does the operations
      |    |               in slots that are idle            |
      |  HostTier  copies of what had to go              HostMemory   the copies themselves
      |
      +-- memory_ops: zero, save, load, store ---------->  in order, before the step's forward

Only the CacheManager frees a block or a slot, and only when no lease has it: the scheduler gives a
lease back when the last step that uses it has been committed. What is kept may be evicted at any
time between two steps; its bytes stay until the operation that hands them to their next owner.
"""
