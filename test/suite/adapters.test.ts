import { expect, test } from "vitest";
import { has_few_registers } from "../../ts/engine/webgpu/webgpu_device.ts";

const adapter = (vendor: string, name: string) => ({
  name,
  vendor,
  architecture: "",
  is_software: false,
  features: [],
});

test.each([
  ["intel", "intel gen-12lp"],
  ["", "Intel(R) Arc(TM) A770 Graphics (DG2)"],
  ["qualcomm", "qualcomm adreno-7xx"],
  ["", "Adreno (TM) 740"],
  ["arm", "arm valhall"],
  ["", "Mali-G715"],
])("an invocation of %s %s has few registers", (vendor, name) => {
  expect(has_few_registers(adapter(vendor, name))).toBe(true);
});

test.each([
  ["nvidia", "NVIDIA GeForce RTX 4090"],
  ["amd", "AMD Radeon 780M (RADV PHOENIX)"],
  ["apple", "Apple M3"],
  ["", "of no name"],
  ["samsung", "Charmed Xclipse 920"],
])("an invocation of %s %s has many registers", (vendor, name) => {
  expect(has_few_registers(adapter(vendor, name))).toBe(false);
});
