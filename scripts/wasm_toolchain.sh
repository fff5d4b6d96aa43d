# How crates are compiled for wasm32: by rustup's toolchain, or by Debian's with the standard library built here.

# One binary for each feature level of the CPU, and one for WebGPU; a user's browser downloads the one it runs.
# First the one whose glue the CPU's others share.
wasm_levels="relaxed_threads simd128 relaxed simd128_threads relaxed_wide relaxed_wide_threads webgpu"

wasm_rustflags() {
  case $1 in
    simd128 | webgpu) echo "-C target-feature=+simd128" ;;
    relaxed | relaxed_wide) echo "-C target-feature=+simd128,+relaxed-simd" ;;
    *_threads) echo "$(wasm_rustflags "${1%_threads}"),$thread_features $(shared_memory)" ;;
    *) fail "There is no feature level \"$1\"." ;;
  esac
}

thread_features=+atomics,+bulk-memory,+mutable-globals

# The memory is JavaScript's, shared by all threads and of up to 4 GiB; wasm-bindgen sets up each thread's stack and
# thread-local variables by the exports.
shared_memory() {
  local arg
  for arg in --shared-memory --import-memory --max-memory=4294967296 --export=__wasm_init_tls --export=__tls_size \
    --export=__tls_align --export=__tls_base; do
    echo "-C link-arg=$arg"
  done | xargs
}

# Panic messages name source files: without the folders of the machine that built this, so that the bytes are the same
# on every machine. rustc replaces the standard library's own "/rustc/HASH" by the folder of rust-src where that is installed.
without_machine_paths() {
  local rustc=${1:-rustc}
  echo "--remap-path-prefix=$root=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=" \
    "--remap-path-prefix=$("$rustc" --print sysroot)/lib/rustlib/src/rust=/rustc"
}

rustup_linker() { echo "$(rustc --print sysroot)/lib/rustlib/$(host_triple)/bin/rust-lld"; }
host_triple() { rustc -vV | sed -n 's/^host: //p'; }
has_wasm_linker() { [ -x "$(rustup_linker)" ] || has lld; }

# Runs a command with the compiler, flags and output folder for wasm32 at a feature level.
in_wasm_toolchain() {
  local level=$1 sysroot
  shift
  sysroot=$(sysroot_of "$level")
  env PATH="${sysroot:+$sysroot/bin:}$PATH" SYSROOT="${sysroot:-$(rustc --print sysroot)}" \
    CARGO_BUILD_TARGET=wasm32-unknown-unknown CARGO_TARGET_DIR="$root/target/wasm" \
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="$(wasm_rustflags "$level") $(without_machine_paths)" \
    "$@"
}

# The sysroot built here that a level needs; none where rustup's is used.
sysroot_of() {
  case $1 in
    *_threads) echo "$threads_sysroot" ;;
    *) has_wasm_target || echo "$wasm_sysroot" ;;
  esac
}

# std for wasm32 from its source, in a folder laid out as a toolchain, so that cargo commands find it as they
# would find rustup's. Usage: build_sysroot FOLDER RUSTC CARGO RUSTFLAGS
build_sysroot() {
  local sysroot=$1 rustc=$2 cargo=$3 flags=$4 work=$1-build host
  host=$("$rustc" -vV | sed -n 's/^host: //p')
  rm -rf "$work" "$sysroot"
  mkdir -p "$work/src" "$sysroot/bin" "$sysroot/lib/rustlib/wasm32-unknown-unknown/lib"
  printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n' >"$work/Cargo.toml"
  echo '#![no_std]' >"$work/src/lib.rs"
  # embed-bitcode: the engine is built with link-time optimisation, which needs it in std too.
  (cd "$work" && RUSTC=$rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C embed-bitcode=yes $flags $(without_machine_paths "$rustc")" CARGO_TARGET_DIR=$work/target \
    "$cargo" build --release --target wasm32-unknown-unknown -Zbuild-std=std,panic_abort) || return 1
  find "$work/target/wasm32-unknown-unknown" -name '*.rlib' ! -name 'libempty*' \
    -exec cp {} "$sysroot/lib/rustlib/wasm32-unknown-unknown/lib/" \;
  ln -s "$("$rustc" --print sysroot)/lib/rustlib/$host" "$sysroot/lib/rustlib/$host"
  # cargo-clippy under its own name: "cargo clippy" would prefer the one of rustup.
  ln -s "$cargo" "$sysroot/bin/cargo"
  [ ! -x "$(dirname "$cargo")/cargo-clippy" ] || ln -s "$(dirname "$cargo")/cargo-clippy" "$sysroot/bin/"
  if [ -x "$(rustup_linker)" ]; then
    ln -s "$(rustup_linker)" "$sysroot/bin/rust-lld"
  else
    ln -s "$(command -v lld)" "$sysroot/bin/rust-lld"
  fi
  printf '#!/bin/sh\nexec %s --sysroot "$(dirname "$0")/.." "$@"\n' "$rustc" >"$sysroot/bin/rustc"
  chmod +x "$sysroot/bin/rustc"
  rm -rf "$work"
  sysroot_stamp "$rustc" >"$sysroot/built-by"
}

# ts/engine gets what it imports: the binary of this level, and the glue that wasm-bindgen wrote for it. The glue of
# relaxed_threads serves every level of the CPU (the others ignore its extra arguments); WebGPU's is its own.
build_wasm() {
  local level=$1 pkg=$root/target/wasm/pkg-$1 generated=ts/engine/generated options=() own=()
  if [ "$level" = webgpu ]; then
    # Its kernels run on the GPU, so this binary is optimised for size.
    local -x CARGO_PROFILE_RELEASE_OPT_LEVEL=s
    options=(--no-default-features --features gpu)
    generated+=/webgpu
    # What wgpu takes for the page that it runs in: ts/engine/webgpu/webgpu_scope.ts.
    own=(self,GPUOutOfMemoryError,GPUValidationError "ts/engine/vit_msn_$level.wasm")
  fi
  case $level in relaxed_wide*) options=(--features wide) ;; esac
  in_wasm_toolchain "$level" cargo build -p vit-msn-wasm --lib --release --locked "${options[@]}" || return 1
  # The package serves the binary by its own address, so the glue needs no default for it.
  wasm-bindgen "$root/target/wasm/wasm32-unknown-unknown/release/vit_msn_wasm.wasm" --target web \
    --omit-default-module-path --out-dir "$pkg" || return 1
  optimise_wasm "$pkg/vit_msn_wasm_bg.wasm" "$root/ts/engine/vit_msn_$level.wasm" || return 1
  case $level in
    relaxed_threads | webgpu) node scripts/glue.mjs "$pkg" "$generated" "${own[@]}" ;;
    *) same_exports "$pkg" || fail "What Rust exports has changed: build relaxed_threads first, whose glue all levels share." ;;
  esac
}

# Whether a level exports what the shared glue expects; levels without threads lack the threads' arguments alone.
same_exports() {
  local glue=$root/ts/engine/generated/vit_msn_wasm.d.ts
  [ ! -e "$glue" ] || cmp -s <(exports_of "$1/vit_msn_wasm.d.ts") <(exports_of "$glue")
}
exports_of() { sed -n 's/^export function \([a-z_]*\)(.*/\1/p' "$1" | sort; }

# wasm-opt takes seconds, so it is skipped where the compiler's output is unchanged.
optimise_wasm() {
  # The compiler has inlined what is worth it; functions that are called often get short indices.
  local last=$1.last-optimised passes="-O3 --flexible-inline-max-function-size=2 --reorder-functions"
  case $2 in
    *_webgpu.wasm) passes=-Os ;;
    # V8 joins vectors whose addresses differ by their constant offsets only. That additions of constants may become
    # offsets needs the first kilobyte of memory to be unused: it is the deepest end of the main stack.
    *_relaxed_wide*.wasm) passes+=" --low-memory-unused --optimize-added-constants-propagate" ;;
  esac
  [ -e "$2" ] && cmp -s "$1" "$last" && return
  npm_bin wasm-opt $passes --strip-debug --strip-producers "$1" -o "$2" && cp "$1" "$last"
}
