"""The walls around one sandbox: limits in, a bubblewrap command line and a seccomp filter out."""
