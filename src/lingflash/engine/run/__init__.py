"""A step on the device: the model, its graphs, sampling, drafts and ranks.

It reads what the scheduler chose and gives back a StepResult for each sequence. Of a sequence it
changes its drafts, its grammar's matcher and the rows of the MTP layer, nothing else; it frees no
memory.
"""
