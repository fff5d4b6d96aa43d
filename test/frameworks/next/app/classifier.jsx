"use client";

import { useEffect } from "react";

async function classify() {
  // Not at the top: Next.js also renders this component on the server.
  const { pipeline } = await import("vit-msn");
  const classify = await pipeline("image-classification", undefined, { worker: true, num_threads: 2 });
  const [best] = await classify("/boot.png", { top_k: 1 });
  return JSON.stringify({ ...best, ...classify.model.engine_info });
}

export default function Classifier() {
  useEffect(() => {
    classify().then(
      (answer) => {
        document.title = answer;
      },
      (error) => {
        document.title = `failed: ${error}`;
      },
    );
  }, []);
  return <p>An image is classified here.</p>;
}
