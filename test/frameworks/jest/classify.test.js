import { pipeline } from "vit-msn";

test("classifies with two threads", async () => {
  const classify = await pipeline("image-classification", undefined, { num_threads: 2, worker: true });
  const [best] = await classify("boot.png", { top_k: 1 });
  await classify.dispose();
  console.log(`ANSWER ${JSON.stringify(best)}`);
  expect(best.label).toBe("Ankle boot");
}, 60_000);
