#!/usr/bin/env node
// Packs the launcher and one platform's binary into the two npm packages that `npx groq-shield` installs.
//
//   node deploy/npm/build.js target/release/groq-shield dist [linux-x64]
//
// The launcher depends on every platform's package as optional, and npm installs the one whose `os` and `cpu` fit. Publish the
// platforms first, the launcher last.
"use strict";

const { execFileSync } = require("node:child_process");
const { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");

const [binary, out = "dist", platform = `${process.platform}-${process.arch}`] = process.argv.slice(2);
if (!binary) {
  console.error("usage: node deploy/npm/build.js BINARY [OUT] [PLATFORM]");
  process.exit(64);
}

const launcher = JSON.parse(readFileSync(join(__dirname, "package.json"), "utf8"));
const name = `${launcher.name}-${platform}`;
if (!(name in launcher.optionalDependencies)) {
  console.error(`${platform} is not among the platforms of ${join(__dirname, "package.json")}`);
  process.exit(64);
}

const [os, cpu] = platform.split("-");
const { version, description, license } = launcher;
const packages = [
  { name, version, description: `${description} (${platform})`, license, os: [os], cpu: [cpu], preferUnplugged: true },
  { ...launcher, files: [...launcher.files, "man"], man: "man/groq-shield.1" },
];
const page = execFileSync(resolve(binary), ["man"]);
const stage = mkdtempSync(join(tmpdir(), "groq-shield-npm-"));
try {
  mkdirSync(out, { recursive: true });
  for (const manifest of packages) {
    const folder = join(stage, manifest.name);
    if (manifest.bin) {
      cpSync(join(__dirname, "bin"), join(folder, "bin"), { recursive: true });
      mkdirSync(join(folder, "man"));
      writeFileSync(join(folder, "man", "groq-shield.1"), page);
    } else {
      cpSync(binary, join(folder, "bin", "groq-shield"));
    }
    writeFileSync(join(folder, "package.json"), JSON.stringify(manifest, null, 2));
    const packed = execFileSync("npm", ["pack", "--silent", "--pack-destination", resolve(out)], { cwd: folder, encoding: "utf8" });
    console.log(join(out, packed.trim()));
  }
} finally {
  rmSync(stage, { recursive: true, force: true });
}
