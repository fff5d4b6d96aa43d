// Shows what is in a chosen image. Nothing leaves the page.
import { pipeline } from "vit-msn";

const input = document.querySelector("input");
const output = document.querySelector("output");
const percent = ({ label, score }) => `${label} ${(100 * score).toFixed(1)} %`;

const show = async (answer) => {
  output.value = await answer.catch((error) => error.message);
};
const loading = pipeline("image-classification", "./fashion"); // a folder on this server, or a hub repository's id
await show(loading.then(() => "Ready"));
input.disabled = false;
input.onchange = () =>
  show(
    loading
      .then((classify) => classify(input.files[0], { top_k: 3 }))
      .then((best) => best.map(percent).join(", ")),
  );
