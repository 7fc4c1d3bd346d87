import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  base: "./",
  // The page shows NIfTI alone: NiiVue's reader of zarr would be more than half of the weight.
  resolve: { alias: { zarrita: here("src/zarr.ts") } },
  build: {
    outDir: here("../src/normscan/viewer/page"),
    emptyOutDir: true,
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 2000,
  },
});
