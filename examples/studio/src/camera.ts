import { h } from "./ui/dom.ts";
import { icon } from "./ui/icons.ts";

/** What browsers say, in words that help. */
const REASONS: Record<string, string> = {
  NotAllowedError:
    "The page may not use the camera. Allow it in the browser's settings for this site, and try again.",
  NotFoundError: "No camera was found. Connect one, and try again.",
  NotReadableError: "The camera is in use by another program. Close that, and try again.",
};

/** Shows the camera until an image is taken or the dialog is closed. */
export async function open_camera(): Promise<File | undefined> {
  const video = h("video", {
    autoplay: true,
    muted: true,
    playsinline: true,
    "aria-label": "What the camera sees",
  });
  const message = h("p", { class: "notice error", role: "alert", hidden: true });
  const take = h(
    "button",
    { type: "button", class: "primary", disabled: true },
    icon("camera"),
    "Take the picture",
  );
  const close = h("button", { type: "button" }, "Close");
  const dialog = h(
    "dialog",
    { class: "camera", "aria-labelledby": "camera-title" },
    h("h2", { id: "camera-title" }, "Camera"),
    video,
    message,
    h("div", { class: "row" }, take, close),
  );
  document.body.append(dialog);
  dialog.showModal();
  let stream: MediaStream | undefined;
  const taken = new Promise<File | undefined>((resolve) => {
    take.onclick = () => void snapshot(video).then(resolve);
    close.onclick = () => resolve(undefined);
    dialog.oncancel = () => resolve(undefined);
  });
  try {
    if (navigator.mediaDevices === undefined)
      throw new Error("Browsers give the camera only to pages that are served by https or from localhost.");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.srcObject = stream;
    video.onloadeddata = () => {
      take.disabled = false;
    };
  } catch (error) {
    const { name, message: text } = error as Error;
    message.textContent = REASONS[name] ?? text;
    message.hidden = false;
    video.hidden = true;
  }
  const file = await taken;
  if (stream !== undefined) stop(stream);
  dialog.close();
  dialog.remove();
  return file;
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

async function snapshot(video: HTMLVideoElement): Promise<File> {
  const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob as Blob], `Camera ${new Date().toLocaleTimeString("en")}`, { type: "image/png" });
}
