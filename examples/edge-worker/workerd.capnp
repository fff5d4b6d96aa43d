# MODEL=facebook/vit-msn-small npx workerd serve workerd.capnp
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "classifier", worker = .classifier),
    (name = "internet", network = (allow = ["public", "private"], tlsOptions = (trustBrowserCas = true))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8080", http = (), service = "classifier")],
);

const classifier :Workerd.Worker = (
  compatibilityDate = "2026-01-01",
  modules = [
    (name = "worker.js", esModule = embed "dist/worker.js"),
    (name = "vit_msn_relaxed.wasm?module", wasm = embed "dist/vit_msn_relaxed.wasm"),
    (name = "mozjpeg_dec.wasm", wasm = embed "dist/mozjpeg_dec.wasm"),
    (name = "squoosh_png_bg.wasm", wasm = embed "dist/squoosh_png_bg.wasm"),
  ],
  bindings = [(name = "MODEL", fromEnvironment = "MODEL")],
);
