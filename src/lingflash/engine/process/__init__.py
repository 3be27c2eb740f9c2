"""The processes around the loop: the engine's own, the other ranks', and the test at start-up.

They read messages and call the loop; nothing imports them but those who start an engine.
"""
