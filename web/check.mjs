// Checks the committed page: that its sources build exactly it, that its first view is small, that it asks nobody else for
// anything, and that the lock file names no registry.
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, rmSync } from "node:fs";
import { gzipSync } from "node:zlib";

const COMMITTED = new URL("../src/eardrum/page/", import.meta.url);
const REBUILT = new URL("../build/page/", import.meta.url);
/** Bytes of the first view, as a server with compression sends it. */
const MAX_GZIPPED = 60_000;

const problems = [];

rmSync(REBUILT, { recursive: true, force: true });
execFileSync("npx", ["vite", "build", "--logLevel", "warn", "--outDir", "../build/page"], {
  cwd: new URL(".", import.meta.url),
  stdio: "inherit",
});
const names = (folder) => readdirSync(folder, { recursive: true }).sort();
if (names(COMMITTED).join() !== names(REBUILT).join()) {
  problems.push(`the committed files are ${names(COMMITTED)}, a build makes ${names(REBUILT)}`);
} else {
  for (const name of names(COMMITTED)) {
    if (!readFileSync(new URL(name, COMMITTED)).equals(readFileSync(new URL(name, REBUILT)))) {
      problems.push(`${name} is not what the sources build: run \`make page\` and commit it`);
    }
  }
}

const first = ["index.html", "app.js", "app.css"].map((name) => readFileSync(new URL(name, COMMITTED)));
const size = first.reduce((sum, file) => sum + gzipSync(file, { level: 9 }).length, 0);
console.log(`First view: ${size} bytes gzipped.`);
if (size > MAX_GZIPPED) problems.push(`the first view has ${size} bytes gzipped; the limit is ${MAX_GZIPPED}`);

for (const [, address] of first[0].toString().matchAll(/(?:src|href)="([^"]*)"/g)) {
  if (!address.startsWith("./")) problems.push(`index.html names ${address}, which is not relative`);
}
if (/<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=/i.test(first[0].toString())) {
  problems.push("index.html has inline scripts or styles, which its Content-Security-Policy forbids");
}
if (/"resolved"/.test(readFileSync(new URL("package-lock.json", import.meta.url)).toString())) {
  problems.push("package-lock.json names a registry");
}

for (const problem of problems) console.error(`page: ${problem}`);
process.exit(problems.length ? 1 : 0);
