#!/usr/bin/env bash
# Builds, tests or shows vit-msn. Installs what is missing first, inside this folder wherever that is possible.
set -euo pipefail
cd "$(dirname "$0")"
root=$PWD
logs=$root/.out/logs
source scripts/steps.sh
source scripts/toolchain.sh
source scripts/wasm_toolchain.sh

usage() {
  cat <<'EOF'
Usage: ./build.sh [COMMAND]

  (none)      install missing tools and build what is stale of the package into dist/
  engine [LEVEL]
              build one engine and bundle it: simd128, relaxed, simd128_threads, relaxed_threads (default),
              relaxed_wide, relaxed_wide_threads or webgpu
  studio      build, then serve the studio, a page that shows what the model sees (PORT, default 8000)
  docs        build, then make the documentation site in docs/site/
  demo        build, then classify sample images with the default model
  test        build, then run every check and test: Rust, Node, browsers, the packed package
  -h, --help  show this

Requires cargo (https://rustup.rs), Node 20 or newer and npm. Missing tools are installed into .tools/;
logs go to .out/logs/. The first run takes about ten minutes, mostly to compile tools; later runs are quick.
CONTRIBUTING.md describes the inner loop and lists the environment variables.
EOF
}

install_for_build() {
  need_node
  need_rust
  need_npm_packages . "npm packages"
  need_wasm_target
  need_wasm_bindgen
}

build() {
  local level
  for level in $wasm_levels; do build_engine "$level"; done
  step "Package: bundles, command line, default model" node scripts/bundle.mjs
  if_stale "Package: type declarations" dist/types "$(tree_of ts package.json tsconfig*.json scripts/declarations.mjs)" \
    declare_types
  node scripts/sizes.mjs || failed_checks+=("sizes: a file of the package is larger than its budget")
}

build_engine() {
  local inputs
  inputs="$(tree_of crates Cargo.toml Cargo.lock scripts/wasm_toolchain.sh scripts/glue.mjs), $(rustc --version)"
  if_stale "Engine: Rust to WebAssembly ($1)" "ts/engine/vit_msn_$1.wasm" "$inputs" build_wasm "$1"
}

declare_types() {
  rm -rf dist/types
  npm_bin tsc -p tsconfig.build.json && node scripts/declarations.mjs
}

# For the inner loop: needs what the first build installed.
engine() {
  case " $wasm_levels " in
    *" $1 "*) ;;
    *) usage >&2; fail "There is no engine \"$1\"; choose from $wasm_levels." ;;
  esac
  has wasm-bindgen && [ -d node_modules ] || fail "Run ./build.sh once first: it installs the tools."
  build_engine "$1"
  step "Package: bundles, command line, default model" node scripts/bundle.mjs
  finish "Done in $SECONDS s."
}

demo() {
  echo "Ten images, one of each class, with the default model's three likeliest classes for each:"
  node dist/cli.js classify models/fashion/pictures/*.png --top-k 3
}

studio() {
  step "Studio: static files in dist-studio/" node examples/studio/build.mjs
  exec node examples/studio/serve.mjs
}

install_for_docs() { need_npm_packages docs "npm packages of the documentation"; }
# typedoc fails on a link that leads nowhere or a comment that names what isn't there.
build_docs() { docs/node_modules/.bin/typedoc --options docs/typedoc.json; }

run_checks() {
  install_for_docs
  need_npm_packages test/typescript-5.5 "TypeScript 5.5, for tests of declarations"
  need_rust_lints
  need_typos
  need_nextest
  need_chromium
  need_browser firefox Firefox firefox-esr
  need_browser webkit WebKitGTK webkit2gtk-driver xvfb libgl1-mesa-dri
  need_newest_node
  need_arm64
  need_vulkan
  # Where there is a driver, a test that finds no adapter has failed.
  if has_vulkan; then export VIT_MSN_REQUIRE_GPU=1; fi
  check "Rust formatting" cargo fmt --all --check
  check "Rust lints, native" cargo clippy --workspace --all-targets --locked -- -D warnings
  check "Rust lints, WebGPU's boundary" \
    cargo clippy -p vit-msn-wasm --no-default-features --features gpu --locked -- -D warnings
  if has_wasm_clippy; then
    check "Rust lints, wasm32" in_wasm_toolchain simd128 cargo-clippy clippy -p vit-msn-wasm --locked -- -D warnings
  else
    echo "  Rust lints, wasm32: skipped, this machine's wasm32 compiler has no clippy"
  fi
  check "TypeScript lints and formatting" npm_bin biome ci --colors=off .
  check "TypeScript types" npm_bin tsc --noEmit
  check "Spelling (typos)" typos
  check "Words and environment variables" node scripts/check_text.mjs
  check "Markdown: width and links" npm_bin markdownlint-cli2
  check "Rust documentation" env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked
  check "Documentation site" build_docs
  check "Package manifest (publint)" npm_bin publint --strict
  check "Package types (attw)" npm_bin attw --pack . --profile esm-only --no-color
  check_aloud "Machine code of the GPU kernels" node scripts/machine_code/main.mjs
  check_aloud "Rust tests" cargo nextest run --workspace --locked --status-level fail
  check_aloud "Fuzzing of the parsers of untrusted bytes, 60 s each" node test/fuzz/run.mjs --seconds 60
  check_aloud "TypeScript tests, in Node and in browsers" node scripts/run_vitest.mjs
}

main() {
  mkdir -p "$logs" "$tools"
  case "${1-}" in
    "" | docs | demo | studio | test) ;;
    engine) [ $# -le 2 ] && engine "${2-relaxed_threads}"; exit ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "There is no command \"$1\"." ;;
  esac
  [ $# -le 1 ] || { usage >&2; fail "One command at a time, please."; }
  install_for_build
  build
  case "${1-}" in
    "") finish "Done in $SECONDS s: the package is in dist/." ;;
    studio) studio ;;
    docs)
      install_for_docs
      step "Documentation: static files in docs/site/" build_docs
      finish "Done in $SECONDS s: docs/site/index.html."
      ;;
    demo) demo; finish "Done in $SECONDS s." ;;
    test)
      run_checks
      # The last line is the count of TypeScript tests, for readers of that line alone.
      trap 'cat .out/vitest-count.txt' EXIT
      finish "All checks passed in $SECONDS s."
      ;;
  esac
}

main "$@"
