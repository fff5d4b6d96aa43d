# How crates are compiled for wasm32: by rustup's toolchain, or by Debian's with the standard library built here.

# One binary for each feature level; a user's browser downloads the one it can run.
wasm_rustflags() {
  case $1 in
    simd128) echo "-C target-feature=+simd128" ;;
    *) fail "There is no feature level \"$1\"." ;;
  esac
}

# Panic messages name source files: without the folders of whoever built this.
without_machine_paths() {
  echo "--remap-path-prefix=$root=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src="
}

rustup_linker() { echo "$(rustc --print sysroot)/lib/rustlib/$(host_triple)/bin/rust-lld"; }
host_triple() { rustc -vV | sed -n 's/^host: //p'; }
has_wasm_linker() { [ -x "$(rustup_linker)" ] || has lld; }

# Runs a command with the compiler, flags and output folder for wasm32 at a feature level.
in_wasm_toolchain() {
  local level=$1 path=$PATH
  shift
  if ! has_wasm_target; then path=$wasm_sysroot/bin:$PATH; fi
  env PATH="$path" SYSROOT="$(has_wasm_target && rustc --print sysroot || echo "$wasm_sysroot")" \
    CARGO_BUILD_TARGET=wasm32-unknown-unknown CARGO_TARGET_DIR="$root/target/wasm-$level" \
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="$(wasm_rustflags "$level") $(without_machine_paths)" \
    "$@"
}

# std for wasm32 from the packaged source, in a folder laid out as a toolchain, so that wasm-pack and plain cargo
# commands find it as they would find rustup's.
build_sysroot() {
  local work=$tools/wasm-sysroot-build host
  host=$(/usr/bin/rustc -vV | sed -n 's/^host: //p')
  rm -rf "$work" "$wasm_sysroot"
  mkdir -p "$work/src" "$wasm_sysroot/bin" "$wasm_sysroot/lib/rustlib/wasm32-unknown-unknown/lib"
  printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n' >"$work/Cargo.toml"
  echo '#![no_std]' >"$work/src/lib.rs"
  # embed-bitcode: the engine is built with link-time optimisation, which needs it in std too.
  (cd "$work" && RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C embed-bitcode=yes $(without_machine_paths)" CARGO_TARGET_DIR=$work/target \
    /usr/bin/cargo build --release --target wasm32-unknown-unknown -Zbuild-std=std,panic_abort) || return 1
  find "$work/target/wasm32-unknown-unknown" -name '*.rlib' ! -name 'libempty*' \
    -exec cp {} "$wasm_sysroot/lib/rustlib/wasm32-unknown-unknown/lib/" \;
  ln -s "/usr/lib/rustlib/$host" "$wasm_sysroot/lib/rustlib/$host"
  # cargo-clippy under its own name: "cargo clippy" would prefer the one of rustup.
  ln -s /usr/bin/cargo /usr/bin/cargo-clippy "$wasm_sysroot/bin/"
  if [ -x "$(rustup_linker)" ]; then
    ln -s "$(rustup_linker)" "$wasm_sysroot/bin/rust-lld"
  else
    ln -s "$(command -v lld)" "$wasm_sysroot/bin/rust-lld"
  fi
  printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot "$(dirname "$0")/.." "$@"\n' >"$wasm_sysroot/bin/rustc"
  chmod +x "$wasm_sysroot/bin/rustc"
  rm -rf "$work"
  packaged_rust_version >"$wasm_sysroot/built-by"
}

# ts/engine gets what it imports: the binary of this level, and the glue that wasm-bindgen wrote for it.
build_wasm() {
  local level=$1 pkg=$root/target/wasm-$1/pkg
  # wasm-bindgen of the right version is on PATH, and nothing is to be downloaded behind the build's back.
  in_wasm_toolchain "$level" wasm-pack build crates/wasm --release --target web --mode no-install --no-opt --no-pack \
    --out-dir "$pkg" --out-name vit_msn_wasm -- --locked || return 1
  optimise_wasm "$pkg/vit_msn_wasm_bg.wasm" "$root/ts/engine/vit_msn_$level.wasm" || return 1
  node scripts/glue.mjs "$pkg" ts/engine/generated
}

# wasm-opt works for seconds: not again on what the compiler left unchanged.
optimise_wasm() {
  local last=$root/target/wasm-last-optimised.wasm
  [ -e "$2" ] && cmp -s "$1" "$last" && return
  npm_bin wasm-opt -O3 --strip-debug --strip-producers "$1" -o "$2" && cp "$1" "$last"
}
