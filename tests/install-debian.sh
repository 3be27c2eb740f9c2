#!/bin/sh
# What the tests need of Debian: node and npm for the programs, Java for its HTTP client, unshare and
# nsenter for the namespaces, bubblewrap for the sandbox, Chromium for the page, PostgreSQL and Redis
# for the gateway. Does nothing where all of it is there.
set -eu
missing=""
command -v javac >/dev/null || missing="$missing openjdk-17-jdk-headless"
command -v node >/dev/null || missing="$missing nodejs"
command -v chromium >/dev/null || missing="$missing chromium"
command -v npm >/dev/null || missing="$missing npm"
command -v nsenter >/dev/null || missing="$missing util-linux"
command -v bwrap >/dev/null || missing="$missing bubblewrap"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing:$missing; install them as root, or run $0 as root" >&2
    exit 1
fi
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
