"""The API of E2B, which Novita's SDK speaks, too: control (REST), files, Connect RPC, run_code.

    control.py      /sandboxes: make, list, connect, time, pause, kill      by API key
    files.py        /files: contents                                        by the sandbox's token
    filesystem.py   filesystem.Filesystem/*: entries, changes
    processes.py    process.Process/*: start, input, signals
    code.py         /execute, /contexts
    rpc.py          Connect RPC with JSON bodies, as these SDKs speak it
    access.py       which sandbox a request is for
    schemas.py      bodies, and what becomes of each field

What is not built is refused by name.
"""
