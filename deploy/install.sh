#!/bin/sh
# Installs this checkout into /opt/lingflash, on a bare Debian 12 or newer, as root; again after an
# update. The container recipe runs it, and `make fresh-machine` in an empty root.
#
#   deploy/install.sh [engine|cuda|cuda,cluster]    default: cuda where there is an NVIDIA GPU
#
# TORCH_CPU_INDEX may name where torch's CPU builds are published.
set -eu
cd "$(dirname "$0")/.."
target=/opt/lingflash
extra=${1:-$(command -v nvidia-smi >/dev/null && echo cuda || echo engine)}

apt-get update -qq
# A compiler too: one conversation decodes faster on a CPU with it, and Triton needs one.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    python3 python3-dev python3-venv gcc libc6-dev ca-certificates >/dev/null

python3 -m venv "$target"
pip="$target/bin/python -m pip --quiet --disable-pip-version-check install"
if [ "$extra" = engine ]; then
    # First and alone, as in the Makefile, so that nothing pulls in CUDA packages.
    $pip --no-deps --retries 1 \
        --extra-index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" \
        -c constraints.txt torch
else
    $pip torch
fi
$pip -c constraints.txt ".[$extra]"

id lingflash >/dev/null 2>&1 ||
    useradd --system --create-home --home-dir /var/lib/lingflash --shell /usr/sbin/nologin lingflash
"$target/bin/ling" --help >/dev/null
echo "installed: $target/bin/ling serve"
