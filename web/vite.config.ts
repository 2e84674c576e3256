import { defineConfig } from "vitest/config";

// Names without hashes: the output is committed, and a new name for every build would fill the history.
// Relative addresses: behind a proxy the page may lie below any path.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/eardrum/page",
    emptyOutDir: true,
    target: ["es2022", "chrome123", "firefox120", "safari17.5"],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rolldownOptions: {
      output: { entryFileNames: "app.js", chunkFileNames: "[name].js", assetFileNames: "app[extname]" },
    },
  },
  server: {
    proxy: { "^/(v1|api|health|logs|running|unload)(/|$|\\?)": { target: "http://127.0.0.1:8100", changeOrigin: true, ws: true } },
  },
  test: { include: ["tests/**/*.test.ts"] },
});
