#!/bin/sh
# A bare Debian, made now: does deploy/install.sh work there, and what it installed? `make
# fresh-machine` runs it, as root. The root is thrown away.
#
# FRESH_MACHINE_SHARE: folders of this machine that the root needs to reach its package registries,
# such as a mirror on disk; pip's settings, PIP_* and the certificates are taken over by themselves.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ "$(id -u)" -ne 0 ]; then
    echo "make fresh-machine needs root: it makes a root file system" >&2
    exit 1
fi
command -v mmdebstrap >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap
}
root=$(mktemp -d)/root
# shellcheck disable=SC2329  # the trap calls it
leave() {
    # Deepest first; what is still mounted must not be removed with the rest.
    awk -v root="$root/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort -r |
        while read -r place; do umount "$place"; done
    rm -rf --one-file-system "$(dirname "$root")"
}
trap leave EXIT
trap 'exit 1' INT TERM

mmdebstrap --quiet --variant=apt --include=ca-certificates bookworm "$root"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp -r /etc/ssl/certs/. "$root/etc/ssl/certs/"
for settings in /etc/pip.conf /etc/xdg/pip; do
    if [ -e "$settings" ]; then
        mkdir -p "$root$(dirname "$settings")"
        cp -r "$settings" "$root$settings"
    fi
done
for folder in ${FRESH_MACHINE_SHARE:-}; do
    mkdir -p "$root$folder"
    mount --bind -o ro "$folder" "$root$folder"
done
mkdir -p "$root/usr/src/lingflash"
git -C "$here" ls-files -z | tar -C "$here" --null -T - -c | tar -C "$root/usr/src/lingflash" -x

chroot "$root" /usr/src/lingflash/deploy/install.sh engine
# The user of deploy/kubernetes, where only numbers count.
[ "$(chroot "$root" id -u lingflash)" = 999 ]
echo "fresh machine: installed"
chroot "$root" su -s /bin/sh lingflash -c '
    cd && /opt/lingflash/bin/ling serve --port 8765 --max-num-seqs 2 2>serve.log & server=$!
    /opt/lingflash/bin/python - <<"PYTHON" || { cat ~/serve.log; kill "$server"; exit 1; }
import json, time, urllib.request
url = "http://127.0.0.1:8765"
deadline = time.monotonic() + 120
while True:
    try:
        urllib.request.urlopen(url + "/ready", timeout=5)
        break
    except OSError:
        assert time.monotonic() < deadline, "the server is not ready"
        time.sleep(0.5)
body = {"messages": [{"role": "user", "content": "Hello! Who are you?"}], "temperature": 0}
request = urllib.request.Request(
    url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
)
said = json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"]
assert said.startswith("I am ling-nano"), said
assert b"lingflash" in urllib.request.urlopen(url + "/ui").read()
print("fresh machine: ling serve answers, and has its page")
PYTHON
    kill "$server" && wait "$server"
'
echo "fresh machine: ling serve ended with 0"
