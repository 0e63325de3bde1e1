#!/usr/bin/env bash
# Cuts the power of a virtual machine while an adapter is saved again and again, and looks at what is on its disk:
# tests/power-cut.sh [CUTS]. By hand, as root on Debian: needs qemu, busybox and a kernel of the distribution (about 50 MB).
#
# The guest loses its memory and what it has not written; the host's cache of the disk survives, so a disk that lies about
# its own cache is not modelled. A writer that does not sync is cut too, to show that the test can fail.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cuts=${1:-3}
work=$PWD/target/power-cut
mkdir -p "$work"

command -v qemu-system-x86_64 >/dev/null && [ -x /bin/busybox ] ||
    apt-get install -y -qq --no-install-recommends qemu-system-x86 busybox-static >/dev/null
if ! ls "$work"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: //p')
    (cd "$work" && apt-get -o APT::Sandbox::User=root download -qq "$kernel" && dpkg -x "$kernel"*.deb kernel && rm "$kernel"*.deb)
fi
vmlinuz=$(ls "$work"/kernel/boot/vmlinuz-*)

exe=$(cargo test --locked --test store --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,proc,dev,mnt,tmp}
cp /bin/busybox "$root/bin/busybox"
cp "$exe" "$root/store"
# The libraries, where the loader looks for them.
ldd "$exe" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t ext4 /dev/nvme0n1 /mnt
echo "running $child"
INLAY_TEST_STORE=/mnt/store INLAY_TEST_MODE=$mode /store --ignored --nocapture --exact "$child"
echo "over"
/bin/busybox poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"

# boot MODE CHILD: the words after `--` are the init's environment.
boot() {
    exec qemu-system-x86_64 -accel tcg -m 256 -nographic -nic none -no-reboot -kernel "$vmlinuz" -initrd "$work/initramfs.gz" \
        -drive "file=$work/disk,if=none,id=disk,format=raw" -device nvme,drive=disk,serial=1 \
        -append "console=ttyS0 quiet panic=-1 mode=$1 child=$2"
}

# cut MODE: saves until some were acknowledged, cuts the power, prints what was acknowledged and what was found.
cut() {
    rm -f "$work/disk"
    truncate -s 64M "$work/disk"
    mkfs.ext4 -q "$work/disk"
    (boot "$1" child_saves_until_killed) >"$work/console" 2>&1 &
    local machine=$!
    until [ "$(grep -c '^saved\|saved [0-9]' "$work/console")" -ge $((20 + RANDOM % 40)) ]; do
        kill -0 $machine 2>/dev/null || { cat "$work/console"; exit 1; }
        sleep 0.2
    done
    kill -9 $machine
    wait $machine 2>/dev/null || true
    local saved
    saved=$(grep -o 'saved [0-9]*' "$work/console" | tail -1)
    (boot "$1" child_reports) >"$work/report" 2>&1
    echo "$1: $saved, $(grep -o 'found [^\r]*' "$work/report")"
}

for mode in Plain Encrypted; do
    for _ in $(seq "$cuts"); do
        line=$(cut $mode)
        echo "$line"
        [[ $line =~ saved\ ([0-9]+),\ found\ ([0-9]+) ]] || { echo "FAILED: no whole record"; exit 1; }
        # The save after the last acknowledged one may be on the disk too.
        ((BASH_REMATCH[2] >= BASH_REMATCH[1] && BASH_REMATCH[2] <= BASH_REMATCH[1] + 1)) || { echo "FAILED"; exit 1; }
    done
done
echo "without a sync, for comparison: $(cut InPlace)"
