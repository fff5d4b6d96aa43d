import { type Env, env as settings, type WebGpuEnv } from "./env.ts";
import {
  callable,
  check_option,
  check_options,
  elsewhere,
  flag,
  is_record,
  type Rule,
  record,
  text,
  unknown_option,
  wasm_input,
} from "./options.ts";

const WEBGPU_RULES: Readonly<Record<keyof WebGpuEnv, Rule>> = {
  gpu: ["a GPU", is_record],
  allow_software: flag,
};

const RULES: Readonly<Record<keyof Env, Rule>> = {
  remote_host: text,
  remote_path_template: text,
  allow_remote_models: flag,
  use_cache: flag,
  cache_dir: text,
  cache_key: text,
  fetch: callable,
  allow_token_over_http: flag,
  warn: callable,
  wasm: wasm_input,
  wide_vectors: flag,
  decode: callable,
  webgpu: record,
};

/** Settings that check assigned values. Settings without a default may be set to undefined. */
function checked<T extends object>(where: string, defaults: T, rules: Readonly<Record<keyof T, Rule>>): T {
  const initial = { ...defaults } as Record<PropertyKey, unknown>;
  return new Proxy(defaults, {
    // Plain assignment calls this, too.
    defineProperty(target, name, descriptor) {
      const { value } = descriptor;
      if (
        !(name in initial) ||
        ("value" in descriptor && !(value === undefined && initial[name] === undefined))
      ) {
        check_option(where, String(name), value, rules);
      }
      if (name === "webgpu") check_options("env.webgpu", value, WEBGPU_RULES);
      return Reflect.defineProperty(target, name, descriptor);
    },
    get(target, name) {
      if (!(name in target) && elsewhere(String(name))) throw unknown_option(where, String(name), []);
      return Reflect.get(target, name);
    },
  });
}

const webgpu = checked("env.webgpu", settings.webgpu, WEBGPU_RULES);

/** The package's settings, which refuse unknown names and values of wrong types. */
export const env: Env = checked<Env>("env", Object.assign(settings, { webgpu }), RULES);
