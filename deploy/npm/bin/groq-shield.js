#!/usr/bin/env node
// Runs the binary that npm installed for this platform: its arguments, standard streams, signals and exit code pass.
"use strict";

const { spawn } = require("node:child_process");
const { constants } = require("node:os");

const platform = `${process.platform}-${process.arch}`;
let binary;
try {
  binary = require.resolve(`groq-shield-${platform}/bin/groq-shield`);
} catch {
  console.error(
    `groq-shield: there is no binary for ${platform} here. Was it installed with --omit=optional? ` +
      "Otherwise build it: cargo install groq-shield",
  );
  process.exit(1);
}

const shield = spawn(binary, process.argv.slice(2), { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => shield.kill(signal));
}
shield.on("error", (error) => {
  console.error(`groq-shield: ${error.message}`);
  process.exit(1);
});
shield.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
